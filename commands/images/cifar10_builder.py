"""Prepares CIFAR-10 like the builder of TensorFlow Datasets (TFDS), but without TensorFlow.

The stock builder uses TensorFlow to unpack the archive, read its files and encode the images. Names, order and labels
are the same. Importing this module imports TFDS.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.image_classification import cifar

from cambrian.commands.images.cifar10_archive import fetch_archive

_FOLDER = "cifar-10-batches-bin"
_FILES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
# Per image: its label, then the red, the green and the blue plane, 32 rows each (www.cs.toronto.edu/~kriz/cifar.html).
_IMAGE_BYTES = 1 + 3 * 32 * 32


with registered.skip_registration():  # the stock builder is registered under the same name

    class Cifar10(cifar.Cifar10):
        """The stock builder, except that it fetches and reads the archive itself and encodes images with Pillow."""

        name = "cifar10"

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Any:
            archive = fetch_archive(Path(self.data_dir_root) / "downloads")
            names = _read(archive, "batches.meta.txt").decode().split()
            cast(Any, self.info.features)["label"].names = names
            return {split: _examples(split, archive) for split in _FILES}


def _examples(split: str, archive: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    index = 0
    for file in _FILES[split]:
        for row in np.frombuffer(_read(archive, file), np.uint8).reshape(-1, _IMAGE_BYTES):
            pixels = row[1:].reshape(3, 32, 32).transpose(1, 2, 0)
            yield index, {"id": f"{split}_{index:05d}", "image": _png(pixels), "label": int(row[0])}
            index += 1


def _read(archive: Path, file: str) -> bytes:
    with tarfile.open(archive) as tar:
        member = tar.extractfile(f"{_FOLDER}/{file}")
        assert member is not None  # a plain file of an archive whose digest was checked
        return member.read()


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
