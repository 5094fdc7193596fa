"""Opens the image source that the flag `--data` names."""

import os

from cambrian.commands.images.labels import find_labels
from cambrian.commands.images.prepared import data_dir, find_prepared
from cambrian.commands.images.source import EvenSample, ImageSource
from cambrian.commands.images.synthetic import SyntheticSource
from cambrian.sharding import UsageError

_NUM_SYNTHETIC_IMAGES = 512
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def choose_data(labels: tuple[str, ...], num_logits: int) -> tuple[str, list[str]]:
    """What `--data auto` means for a model, as `open_source` takes it, and notes.

    CIFAR-10 for a model with its labels, or with 10 logits and no labels: prepared by TFDS if there is one, else the
    packaged sample. Synthetic images for any other model.

    Args:
      labels: the model's labels in the order of the logits; empty if unknown.
    """
    if None in find_labels(_CIFAR10, labels) if labels else num_logits != len(_CIFAR10):
        return "synthetic", ["the model isn't one of CIFAR-10: running on synthetic images; --data takes others"]
    if find_prepared():
        return "cifar10", []
    note = f"no prepared CIFAR-10 in {data_dir()}: running on 1,000 of its test images; --data cifar10 downloads all"
    return "cifar10_sample", [note]


def open_source(
    data: str, *, split: str = "test", num_images: int = 0, seed: int = 0, splits_optional: bool = False
) -> tuple[ImageSource, list[str]]:
    """Opens a data set; images are read later, one by one.

    Args:
      data: `cifar10` (downloaded and prepared if necessary), `cifar10_sample`, `synthetic`, or a folder.
      split: of CIFAR-10, or of a folder with a split level; synthetic images have none.
      num_images: 0 for all images, or 512 synthetic ones; a smaller number than there are takes them at even distances.
      seed: of synthetic images.
      splits_optional: whether a folder without a split level stands for any split, as it does for `test`.

    Returns:
      The source, and human-readable notes.

    Raises:
      UsageError: if the data is missing, empty, can't be downloaded, lacks the split or has fewer images.
    """
    if data == "synthetic":
        if not (splits_optional or split == "test"):
            raise UsageError(f"split must be left out for synthetic images, which have none, got {split!r}")
        return SyntheticSource(num_images or _NUM_SYNTHETIC_IMAGES, seed), []

    # Each is imported only where needed: they import Pillow.
    notes = []
    if data == "cifar10":
        from cambrian.commands.images.cifar10 import open_cifar10

        source = open_cifar10(split)
    elif data == "cifar10_sample":
        from cambrian.commands.images.sample import open_sample

        source = open_sample(split)
    else:
        from cambrian.commands.images.folder import open_folder

        source, notes = open_folder(os.path.expanduser(data), split, splits_optional=splits_optional)
    return EvenSample(source, num_images) if num_images else source, notes
