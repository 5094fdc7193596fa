"""CIFAR-10 by TensorFlow Datasets (TFDS), without TensorFlow."""

import contextlib
import dataclasses
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.inputs.decode import decode_image
from engine.inputs.labels import match_labels
from engine.inputs.prepared import FILE_FORMAT, data_dir, find_prepared, prepared_formats
from engine.inputs.source import Image
from sharding import UsageError


@dataclasses.dataclass(frozen=True, slots=True)
class Cifar10Source:
    """A split of prepared CIFAR-10; `label_of_class` turns its class numbers into those of `class_names`."""

    split: str
    records: Sequence[dict[str, Any]]
    label_of_class: tuple[int, ...]
    class_names: tuple[str, ...]
    image_size: int
    crop_fraction: float
    interpolation: str

    @property
    def description(self) -> str:
        return f"CIFAR-10, split {self.split}"

    @property
    def has_labels(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Image:
        if not 0 <= index < len(self.records):
            raise IndexError(index)
        record = self.records[index]
        name = record["id"].decode()
        file = io.BytesIO(record["image"])
        pixels = decode_image(file, name, self.image_size, self.crop_fraction, self.interpolation)
        return Image(name, pixels, self.label_of_class[record["label"]])


def open_cifar10(
    *, split: str, image_size: int, crop_fraction: float, labels: tuple[str, ...], interpolation: str = "bilinear"
) -> tuple[Cifar10Source, list[str]]:
    """Opens a split of CIFAR-10, and downloads and prepares it first where that wasn't done before.

    Args:
      labels: the weights' labels in the order of the logits, which the classes are matched to; empty if unknown.

    Returns:
      The source, and notes.

    Raises:
      UsageError: if there is no such split, the download fails, or CIFAR-10 is prepared in another file format.
    """
    folder = find_prepared() or _prepare()
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(folder)  # its annotations don't fit its use
    if split not in builder.info.splits:
        raise UsageError(f"split of CIFAR-10 must be one of {', '.join(sorted(builder.info.splits))}, got {split!r}")
    # The image stays encoded: TFDS would decode it by OpenCV or Pillow, whichever is installed.
    records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    numbers, class_names, notes = match_labels(builder.info.features["label"].names, labels)
    return Cifar10Source(split, records, numbers, class_names, image_size, crop_fraction, interpolation), notes


def _prepare() -> Path:
    if prepared := prepared_formats():
        folder, file_format = next(iter(prepared.items()))
        raise UsageError(
            f"CIFAR-10 prepared as {FILE_FORMAT} is needed, got {file_format} in {folder}: "
            "with TFDS_DATA_DIR=FOLDER it is prepared in another folder"
        )
    import tensorflow_datasets as tfds

    from engine.inputs.cifar10_builder import Cifar10

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        # TFDS tells of its progress on stdout, which belongs to results.
        with contextlib.redirect_stdout(sys.stderr):
            builder = Cifar10(data_dir=data_dir(), file_format=FILE_FORMAT)
            builder.download_and_prepare()
    except OSError as error:
        raise UsageError(f"TFDS_DATA_DIR must be a folder that CIFAR-10 fits in, got {data_dir()}: {error}") from error
    return Path(builder.data_dir)
