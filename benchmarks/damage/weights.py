"""Damaged weights: a safetensors file and, where PyTorch is installed, one of its own, in one place.

safetensors has no checksum, so *right* is every variable in the right shape and finite: its values may differ.
"""

import dataclasses
import importlib.util
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.damage.part import mutate


@dataclasses.dataclass(frozen=True)
class Weights:
    hung_after_s: float = 60.0

    def prepare(self, folder: Path) -> None:
        from safetensors.numpy import load_file

        from command import SMALL, write_checkpoint

        tensors = load_file(write_checkpoint(folder / "small.safetensors", SMALL))
        if importlib.util.find_spec("torch"):
            import torch  # pyright: ignore[reportMissingImports]

            torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, folder / "small.pth")

    def case(self, folder: Path, number: int, chance: random.Random, tell: Callable[[str], None]) -> str:
        from cambrian.models.checkpoints.weights import read_weights
        from cambrian.models.resnet.variables import random_variables
        from cambrian.sharding import UsageError

        files = sorted(folder.iterdir())
        original = files[number % len(files)]
        what, data = mutate(original.read_bytes(), chance, num_head_bytes=3000)
        tell(f"{what} of {original.name}")
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / original.name
            path.write_bytes(data)
            try:
                weights = read_weights(path)
            except UsageError:
                return "refused"
        expected = {name: value.shape for name, value in random_variables(weights.architecture).items()}
        found = {name: value.shape for name, value in weights.variables.items()}
        is_finite = all(np.isfinite(value).all() for value in weights.variables.values())
        return "right" if found == expected and is_finite else "lost"
