"""Runs one part of `gpu.py` in this process and prints each row as a line of JSON.

python -m benchmarks.gpu_parts PART '{"platform": "gpu", …}'
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np


def rows(part: str, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a part, whose module is imported only here."""
    platform = settings["platform"]
    if part == "peak":
        from benchmarks.gpu_parts import peak

        yield from peak.measure(platform, settings["rows"])
    elif part == "training":
        from benchmarks.gpu_parts import training
        from cambrian.configs.train_resnet101_cifar10 import RECIPE
        from cambrian.models.resnet.architecture import Architecture

        architecture = Architecture.resnet(101, "cifar", 10)
        recipe = dataclasses.replace(RECIPE, batch_size=settings["training_batch"])
        yield from training.measure(architecture, recipe, platform, settings["epochs"], settings["training_images"])
    else:
        from benchmarks.sides.problem import resnet101

        size = settings["size"]
        images = np.random.default_rng(0).integers(0, 256, (1000, size, size, 3), np.uint8)
        problem = resnet101("cifar" if size <= 64 else "imagenet", images)
        flops = sum(layer.flops for layer in problem.network)
        batches, num_images = settings["batches"], settings["num_images"]
        if part == "pytorch":
            from benchmarks.gpu_parts import pytorch

            measured = pytorch.measure(problem, platform, batches, num_images)
        else:
            from benchmarks.gpu_parts import inference

            if part == "stock":
                measured = inference.measure_stock(problem, platform, batches, num_images)
            else:
                measured = inference.measure_ours(problem, platform, settings["precisions"], batches, num_images)
        for row in measured:
            yield {"size": size, **row, "tflops": 1e-12 * flops * row["images_per_second"]}


if __name__ == "__main__":
    for row in rows(sys.argv[1], json.loads(sys.argv[2])):
        print(json.dumps(row), flush=True)
