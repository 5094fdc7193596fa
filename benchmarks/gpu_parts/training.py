"""Times some epochs of the ResNet101 recipe for CIFAR-10, on random images of the same number and size."""

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.variables import initial_variables
from cambrian.models.training.checkpoints import Checkpoints
from cambrian.models.training.loop import EpochMetrics, TrainingData, train
from cambrian.models.training.recipe import Recipe
from cambrian.sharding import MeshShape, make_mesh

STATISTICS = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def measure(
    architecture: Architecture, recipe: Recipe, platform: str, epochs: int, num_images: int, size: int = 32
) -> Iterator[dict[str, Any]]:
    """Yields one row: images/s of each of the first epochs, and their seconds with compilation and checkpoints."""
    random = np.random.default_rng(0)

    def noise(number: int) -> tuple[np.ndarray, np.ndarray]:
        images = random.integers(256, size=(number, size, size, 3), dtype=np.uint8)
        return images, random.integers(architecture.num_classes, size=number).astype(np.int32)

    mean, std = STATISTICS
    finished: list[EpochMetrics] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train(
            architecture,
            initial_variables(architecture),
            dataclasses.replace(recipe, epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs / 2)),
            TrainingData(*noise(num_images), *noise(num_images // 5)),
            make_mesh(MeshShape(1, 1), jax.local_devices(backend=platform)[:1]),
            precision="bfloat16",
            mean=mean,
            std=std,
            seed=0,
            checkpoints=Checkpoints(Path(folder)),
            facts={},
            on_progress=lambda _: None,
            on_epoch=finished.append,
        )
    rates = [epoch.images_per_second for epoch in finished]
    yield {
        "epochs": epochs,
        "images_per_second": rates,
        "wall_s": time.perf_counter() - start,
        "recipe_s_by_calculation": recipe.epochs * num_images / rates[-1],
    }
