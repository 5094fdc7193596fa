"""Loads a whole labelled source into memory, for training."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cambrian.commands.console import progress_bar
from cambrian.commands.images.source import ModelImages
from cambrian.sharding import UsageError


def load_arrays(source: ModelImages, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads every image of a source, with a progress bar on a terminal.

    Returns:
      Images (N, H, W, 3) uint8 and labels (N,) int32, in the source's order.

    Raises:
      UsageError: if an image has no label or can't be read.
    """
    if source.class_names is None:
        raise UsageError(
            f"training needs labelled images, CIFAR-10 or a folder of class folders, got {source.description}"
        )
    images: np.ndarray | None = None
    labels = np.empty(len(source), np.int32)
    with ThreadPoolExecutor(threads) as pool, progress_bar(len(source), "reading") as show_progress:
        for index, image in enumerate(pool.map(source.__getitem__, range(len(source)))):
            if images is None:
                images = np.empty((len(source), *image.pixels.shape), np.uint8)
            if image.label is None:
                raise UsageError(f"training needs labelled images, got {image.name} without a label")
            images[index], labels[index] = image.pixels, image.label
            show_progress(index + 1)
    assert images is not None  # a source has at least one image
    return images, labels
