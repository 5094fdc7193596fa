"""Opens the image source that the flag `--data` names."""

import os

from cambrian.commands.images.prepared import data_dir, find_prepared
from cambrian.commands.images.source import EvenSample, ImageSource
from cambrian.commands.images.synthetic import SyntheticSource

_NUM_SYNTHETIC_IMAGES = 512


def open_source(data: str, *, split: str = "test", num_images: int = 0, seed: int = 0) -> tuple[ImageSource, list[str]]:
    """Opens what `data` names; images are read one by one later, when asked for.

    Args:
      data: `auto` (prepared CIFAR-10 if there is one, else synthetic images), `cifar10` (downloaded and prepared if
        need be), `synthetic`, or a folder.
      split: of CIFAR-10, or of a folder with a split level; synthetic images have none.
      num_images: 0 for all of CIFAR-10 or a folder, or 512 synthetic images; a smaller number than there are takes
        that many at even distances.
      seed: of synthetic images.

    Returns:
      The source, and notes on deviations from the request.

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
        return SyntheticSource(num_images or _NUM_SYNTHETIC_IMAGES, seed), notes

    # Imported only when needed, because they import Pillow.
    if data == "cifar10":
        from cambrian.commands.images.cifar10 import open_cifar10

        source = open_cifar10(split)
    else:
        from cambrian.commands.images.folder import open_folder

        source, more_notes = open_folder(os.path.expanduser(data), split)
        notes += more_notes
    return EvenSample(source, num_images) if num_images else source, notes
