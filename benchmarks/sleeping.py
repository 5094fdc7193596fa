"""Stand-ins for a batch job: images that cost nothing to read, and an executable that sleeps where others compute."""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from cambrian.commands.images.source import Image
from cambrian.sharding import Preprocessing

SIZE = (32, 32)
_BLANK = np.zeros((*SIZE, 3), np.uint8)


@dataclasses.dataclass(frozen=True)
class BlankImages:
    """Black images, which cost nothing to read."""

    count: int
    class_names: None = None
    description: str = "blank"

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{index:06}"

    def read(self, index: int, preprocessing: Preprocessing) -> Image:
        return Image(self.name(index), _BLANK, None)


@dataclasses.dataclass(frozen=True)
class SleepingArtifact:
    """Takes the place of a shipped artefact; its executable sleeps where another computes.

    Attributes:
      workers: number of processes that load it. Each waits for the others, so that none begins before all are there.
      meeting: an empty folder, in which they meet.
    """

    launch_s: float
    batch_size: int
    workers: int
    meeting: str

    def load(self, signing_key: Any) -> Any:
        """Returns the executable; `Worker` calls it as `ShippedArtifact.load`."""
        import jax
        from jax.sharding import PartitionSpec as P

        from cambrian.engine.runtime.executable import Analysis, Executable
        from cambrian.engine.runtime.parity import Parity
        from cambrian.sharding import MeshShape, TensorSpec, make_mesh

        (Path(self.meeting) / str(os.getpid())).touch()
        while len(os.listdir(self.meeting)) < self.workers:
            time.sleep(0.05)
        logits = jax.device_put(np.zeros((self.batch_size, 10), np.float32))

        def sleep(params: Any, inputs: Any) -> jax.Array:
            time.sleep(self.launch_s)  # launches are made one at a time
            return logits

        return Executable(
            name="sleeping",
            kind="online",
            compiled=sleep,  # pyright: ignore[reportArgumentType]
            params=[],
            param_specs=(),
            input_spec=TensorSpec("images", (self.batch_size, *SIZE, 3), "uint8", P("data")),
            output_spec=TensorSpec("logits", (self.batch_size, 10), "float32", P("data")),
            mesh=make_mesh(MeshShape(1, 1), jax.devices()),
            analysis=Analysis(0, 0, 0, 0.0),
            parity=Parity(0.0, 1.0),
            metadata={"labels": [], "trained": False},
        )
