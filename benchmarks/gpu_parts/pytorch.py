"""Images/s of torch.compile, channels last, bfloat16, from uint8 images in host memory to logits in host memory."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from benchmarks.gpu_parts.inference import launch_all, median_seconds
from benchmarks.sides.problem import Problem
from benchmarks.sides.pytorch import FoldedNetwork


def measure(problem: Problem, platform: str, batches: list[int], num_images: int) -> Iterator[dict[str, Any]]:
    """Yields a row for each batch size; weights are folded and frozen, the transfer and normalisation are counted."""
    device = torch.device("cuda" if platform == "gpu" else "cpu")
    images = np.resize(problem.images, (num_images, *problem.images.shape[1:]))
    network = FoldedNetwork(problem, torch.bfloat16).eval().to(device)
    mean, std = (torch.tensor(values, device=device) for values in (problem.mean, problem.std))

    def infer(pixels: torch.Tensor) -> torch.Tensor:
        normalised = (pixels.float() / 255 - mean) / std
        return network(normalised.permute(0, 3, 1, 2).to(torch.bfloat16)).float()

    compiled = torch.compile(infer, dynamic=False, options={"freezing": True})

    def launch(pixels: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(pixels)
        if platform == "gpu":
            tensor = tensor.pin_memory()
        return compiled(tensor.to(device, non_blocking=True))

    with torch.no_grad():
        for batch in batches:
            start = time.perf_counter()
            launch(images[:batch]).cpu()
            build_s = time.perf_counter() - start
            seconds = median_seconds(lambda batch=batch: launch_all(images, batch, launch, lambda made: made.cpu()))
            yield {
                "side": "torch.compile, channels last",
                "precision": "bfloat16",
                "batch": batch,
                "images_per_second": len(images) / seconds,
                "build_s": build_s,
            }
