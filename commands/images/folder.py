"""Images in a folder: FOLDER/CLASS/image, FOLDER/SPLIT/CLASS/image, or unlabelled images directly in FOLDER.

A folder holds either images or folders. FOLDER has a split level if one of its folders is called as the split asked
for, or all of them are called as splits usually are; a split may hold unlabelled images too. Class folders hold no
folders. Hidden files are ignored without a word, other files that are not images with a note.
"""

import dataclasses
import os
from typing import NamedTuple

from cambrian.commands.images.decode import decode_image
from cambrian.commands.images.source import Image
from cambrian.sharding import Preprocessing, UsageError

_SUFFIXES = (".jpg", ".jpeg", ".png")
_USUAL_SPLITS = {"train", "test", "val", "valid", "validation"}


@dataclasses.dataclass(frozen=True, slots=True)
class FolderSource:
    """Image files of one folder, in the order of their sorted names; `files` are (path below `folder`, label)."""

    folder: str
    files: tuple[tuple[str, int | None], ...]
    class_names: tuple[str, ...] | None

    @property
    def description(self) -> str:
        return f"folder {self.folder}"

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int, preprocessing: Preprocessing) -> Image:
        file, label = self.files[index]
        path = os.path.join(self.folder, file)
        # A file name need not be valid UTF-8, but the predictions and the report are.
        name = os.fsencode(file).decode("utf-8", errors="replace")
        return Image(name, decode_image(path, path, preprocessing), label)


def open_folder(folder: str, split: str) -> tuple[FolderSource, list[str]]:
    """Lists the images of a folder, without reading them.

    Args:
      split: which split, if the folder has a split level.

    Returns:
      The source, and notes.

    Raises:
      UsageError: if the folder is missing, is empty, has no such split, or is laid out in another way.
    """
    listing = _list(folder)
    if split in listing.folders or (listing.folders and _USUAL_SPLITS.issuperset(listing.folders)):
        if split not in listing.folders:
            raise UsageError(f"split must be one of {', '.join(listing.folders)} in {folder}, got {split!r}")
        folder = os.path.join(folder, split)
        listing = _list(folder)
    files: list[tuple[str, int | None]] = [(image, None) for image in listing.images]
    num_ignored = listing.num_others
    for label, class_folder in enumerate(listing.folders):
        of_class = _list(os.path.join(folder, class_folder))
        if of_class.folders:
            deeper = os.path.join(folder, class_folder, of_class.folders[0])
            raise UsageError(
                f"expected images as CLASS/image, or as SPLIT/CLASS/image with a split {split!r}, "
                f"got a folder in a class: {deeper}"
            )
        files += [(os.path.join(class_folder, image), label) for image in of_class.images]
        num_ignored += of_class.num_others
    if not files:
        raise UsageError(f"expected a folder with JPEG or PNG images, got {folder} without any")
    notes = []
    if num_ignored:
        notes.append(f"files in {folder} that are neither JPEG nor PNG images: {num_ignored}, ignored")
    return FolderSource(folder, tuple(files), tuple(listing.folders) or None), notes


class _Listing(NamedTuple):
    """Sorted names of what a folder holds, hidden files aside."""

    images: list[str]
    folders: list[str]
    num_others: int


def _list(folder: str) -> _Listing:
    images, folders, num_others = [], [], 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.is_file() and entry.name.lower().endswith(_SUFFIXES):
                    images.append(entry.name)
                else:
                    num_others += 1
    except OSError as error:
        raise UsageError(
            f"data must be auto, cifar10, synthetic or a folder of images, got {folder!r}: {error.strerror}"
        ) from None
    if images and folders:
        raise UsageError(
            f"expected a folder of either images or class folders, got both in {folder}: "
            f"{min(images)} and the folder {min(folders)}"
        )
    return _Listing(sorted(images), sorted(folders), num_others)
