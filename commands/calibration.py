"""The images that int8 is calibrated on: those of `--calibration_data`, else of the run's own training split."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from cambrian.commands.configuration import Configuration
from cambrian.commands.images.labels import find_labels
from cambrian.commands.images.open import choose_data, open_source
from cambrian.commands.images.prepared import find_prepared
from cambrian.commands.images.source import EvenSample, ImageSource
from cambrian.sharding import Preprocessing, UsageError

if TYPE_CHECKING:
    from cambrian.models import Calibration

NUM_IMAGES = 256
_SPLIT = "train"
_SAMPLE = "cifar10_sample"
_SAMPLE_NOTE = (
    f"int8 is calibrated on {NUM_IMAGES} packaged test images of CIFAR-10; --calibration_data takes a folder of others"
)


def read_calibration(
    preprocessing: Preprocessing,
    labels: tuple[str, ...],
    num_logits: int,
    trained: bool,
    *,
    calibration_data: str = "auto",
    data: str = "auto",
    max_top1_drop: float = 0.5,
) -> tuple["Calibration", tuple[str, ...]]:
    """Reads at most NUM_IMAGES images at even distances, and returns them with notes.

    Args:
      preprocessing: of the model.
      labels: of the model, in the order of the logits; empty if unknown.
      trained: whether the model's top-1 on labelled images means something.
      calibration_data: as the flag.
      data: of the run, as the flag.
      max_top1_drop: in percentage points.

    Raises:
      UsageError: if the images can't be found or read, are fewer than 16, or all equal.
    """
    from cambrian.models import Calibration  # only to build: an offline run starts without models

    if calibration_data == "auto" and data == "auto":
        data, _ = choose_data(labels, num_logits)
    source, notes = _source(calibration_data, data)
    images = [source.read(index, preprocessing) for index in range(len(source))]
    numbers = find_labels(source.class_names, labels) if source.class_names and trained else []
    right = None
    if numbers and None not in numbers:
        right = np.array([numbers[image.label] for image in images if image.label is not None])
    pixels = np.stack([image.pixels for image in images])
    return Calibration(pixels, source.description, right, max_top1_drop), notes


def calibration_identity(configuration: Configuration) -> dict[str, Any] | None:
    """What the calibration of a run depends on, as JSON-compatible values; None without int8.

    Raises:
      UsageError: if the images can't be found.
    """
    if configuration.precision != "int8":
        return None
    from cambrian.commands.images.folder import files_digest  # imports Pillow

    named, data = configuration.calibration_data, configuration.data
    facts = {"calibration_data": named, "data": data, "max_top1_drop": configuration.max_top1_drop}
    if data == "auto" or named == "auto":
        facts["prepared"] = str(find_prepared())
    source, _ = _source(named, data if data != "auto" else _SAMPLE)
    return facts | {"source": source.description, "files": files_digest(source)}


def _source(calibration_data: str, data: str) -> tuple[ImageSource, tuple[str, ...]]:
    notes = ()
    if calibration_data != "auto":
        chosen, split = calibration_data, "test" if calibration_data == _SAMPLE else _SPLIT
    elif data == "cifar10" or os.path.isdir(os.path.join(os.path.expanduser(data), _SPLIT)):
        chosen, split = data, _SPLIT
    else:
        chosen, split, notes = _SAMPLE, "test", (_SAMPLE_NOTE,)
    try:
        source, _ = open_source(chosen, split=split, splits_optional=True)
    except UsageError as error:
        raise UsageError(f"calibration_data: {error}") from None
    return EvenSample(source, NUM_IMAGES) if len(source) > NUM_IMAGES else source, notes
