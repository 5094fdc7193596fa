"""Chooses the image source that the flag `--data` names."""

import os

from engine.inputs.prepared import data_dir, find_prepared
from engine.inputs.source import EvenSample, ImageSource
from engine.inputs.synthetic import SyntheticSource

_NUM_SYNTHETIC_IMAGES = 512


def open_source(
    data: str,
    *,
    split: str,
    num_images: int,
    image_size: int,
    crop_fraction: float,
    labels: tuple[str, ...],
    seed: int,
    interpolation: str = "bilinear",
) -> tuple[ImageSource, list[str]]:
    """Opens what `data` names; images are read one by one later, when asked for.

    Args:
      data: `auto` (prepared CIFAR-10 if there is one, else synthetic images), `cifar10` (downloaded and prepared if
        need be), `synthetic`, or a folder.
      split: of CIFAR-10, or of a folder with a split level; synthetic images have none.
      num_images: 0 means all of CIFAR-10 or a folder, and 512 synthetic images; fewer than there are means that many at
        even distances.
      image_size: height and width in pixels of the images that the source gives.
      crop_fraction: see `resize_and_crop`.
      labels: the weights' labels in the order of the logits, which classes are matched to by name; empty if unknown.
      seed: of synthetic images.
      interpolation: how images are resized, Pillow's filter by its name in lower case.

    Returns:
      The source, and one note for each thing that is other than asked or expected.

    Raises:
      UsageError: if the data is missing, empty, can't be downloaded, lacks the split or has fewer images.
    """
    notes = []
    if data == "auto":
        data = "cifar10" if find_prepared() else "synthetic"
        if data == "synthetic":
            notes.append(
                f"no prepared CIFAR-10 in {data_dir()}: running on synthetic images; --data cifar10 downloads it"
            )
    if data == "synthetic":
        return SyntheticSource(num_images or _NUM_SYNTHETIC_IMAGES, image_size, seed), notes

    # Imported only when needed, because they import Pillow.
    if data == "cifar10":
        from engine.inputs.cifar10 import open_cifar10

        source, more_notes = open_cifar10(
            split=split,
            image_size=image_size,
            crop_fraction=crop_fraction,
            labels=labels,
            interpolation=interpolation,
        )
    else:
        from engine.inputs.folder import open_folder

        source, more_notes = open_folder(
            os.path.expanduser(data),
            split=split,
            image_size=image_size,
            crop_fraction=crop_fraction,
            labels=labels,
            interpolation=interpolation,
        )
    return EvenSample(source, num_images) if num_images else source, notes + more_notes
