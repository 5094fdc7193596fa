"""CIFAR-10 by TensorFlow Datasets (TFDS), without TensorFlow."""

import contextlib
import dataclasses
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cambrian.commands.images.decode import decode_image
from cambrian.commands.images.prepared import FILE_FORMAT, data_dir, find_prepared, prepared_formats
from cambrian.commands.images.source import Image
from cambrian.sharding import Preprocessing, UsageError


@dataclasses.dataclass(frozen=True, slots=True)
class Cifar10Source:
    """A split of prepared CIFAR-10."""

    split: str
    records: Sequence[dict[str, Any]]
    class_names: tuple[str, ...]

    @property
    def description(self) -> str:
        return f"CIFAR-10, split {self.split}"

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int, preprocessing: Preprocessing) -> Image:
        record = self.records[index]
        name = record["id"].decode()
        return Image(name, decode_image(io.BytesIO(record["image"]), name, preprocessing), record["label"])


def open_cifar10(split: str) -> Cifar10Source:
    """Opens a split of CIFAR-10, which is downloaded and prepared the first time.

    Raises:
      UsageError: if there is no such split, the download fails, or CIFAR-10 is prepared in another file format.
    """
    folder = find_prepared() or _prepare()
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(folder)  # its annotations don't fit its use
    if split not in builder.info.splits:
        raise UsageError(f"split of CIFAR-10 must be one of {', '.join(sorted(builder.info.splits))}, got {split!r}")
    # Images stay encoded: TFDS would decode them with OpenCV or Pillow, whichever is installed.
    records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    return Cifar10Source(split, records, tuple(builder.info.features["label"].names))


def _prepare() -> Path:
    if prepared := prepared_formats():
        folder, file_format = next(iter(prepared.items()))
        raise UsageError(
            f"CIFAR-10 must be prepared as {FILE_FORMAT}, got {file_format} in {folder}: "
            "TFDS_DATA_DIR=FOLDER prepares it in another folder"
        )
    import tensorflow_datasets as tfds

    from cambrian.commands.images.cifar10_builder import Cifar10

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        # TFDS prints its progress on stdout, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            builder = Cifar10(data_dir=data_dir(), file_format=FILE_FORMAT)
            builder.download_and_prepare()
    except OSError as error:
        raise UsageError(f"TFDS_DATA_DIR must be a folder with room for CIFAR-10, got {data_dir()}: {error}") from error
    return Path(builder.data_dir)
