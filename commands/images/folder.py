"""Images in a folder: FOLDER/CLASS/image, FOLDER/SPLIT/CLASS/image, or unlabelled images directly in FOLDER.

A folder holds either images or folders. FOLDER has a split level if one of its folders has the name of the requested
split, or all of them have usual names of splits; a split may hold unlabelled images too. Class folders hold no
folders. Hidden files are ignored silently, other files that aren't images with a note.
"""

import dataclasses
import hashlib
import os
from collections import Counter
from typing import NamedTuple

from cambrian.commands.images.decode import decode_image
from cambrian.commands.images.file_system import Entry, FileSystem, LocalFiles
from cambrian.commands.images.labels import is_number
from cambrian.commands.images.source import EvenSample, Image, ImageSource
from cambrian.sharding import Preprocessing, UsageError

_LOCAL = LocalFiles()
_SUFFIXES = (".jpg", ".jpeg", ".png")
_MAX_LISTED = 5
_USUAL_SPLITS = {"train", "test", "val", "valid", "validation"}


@dataclasses.dataclass(frozen=True, slots=True)
class FolderSource:
    """Image files of one folder, sorted by class and name; `files` are (path below `folder`, label)."""

    folder: str
    files: tuple[tuple[str, int | None], ...]
    class_names: tuple[str, ...] | None
    file_system: FileSystem = _LOCAL

    @property
    def description(self) -> str:
        return f"folder {self.folder}"

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int, preprocessing: Preprocessing) -> Image:
        file, label = self.files[index]
        path = os.path.join(self.folder, file)
        return Image(self.name(index), decode_image(self.file_system.open(path), path, preprocessing), label)

    def name(self, index: int) -> str:
        """The name of an image, also of one that can't be read."""
        return _as_utf8(self.files[index][0])


def open_folder(
    folder: str, split: str, file_system: FileSystem = _LOCAL, *, splits_optional: bool = False
) -> tuple[FolderSource, list[str]]:
    """Lists the images of a folder, without reading them.

    Args:
      split: which split, if the folder has a split level.
      file_system: where the folder lies.
      splits_optional: whether a folder without a split level stands for any split, as it does for `test`.

    Returns:
      The source, and notes.

    Raises:
      UsageError: if the folder is missing, is empty, has no such split, or is laid out in another way.
    """
    listing = _list(folder, file_system)
    if has_splits := _has_splits(folder, listing, split, file_system):
        if split not in listing.folders:
            raise UsageError(f"split must be one of {', '.join(listing.folders)} in {folder}, got {split!r}")
        folder = os.path.join(folder, split)
        listing = _list(folder, file_system)
    files: list[tuple[str, int | None]] = [(image, None) for image in listing.images]
    others = listing.others
    for label, class_folder in enumerate(listing.folders):
        of_class = _list(os.path.join(folder, class_folder), file_system)
        if of_class.folders:
            deeper = os.path.join(folder, class_folder, of_class.folders[0])
            raise UsageError(
                f"expected images as CLASS/image, or as SPLIT/CLASS/image with a split {split!r}, "
                f"got a folder in a class: {deeper}"
            )
        files += [(os.path.join(class_folder, image), label) for image in of_class.images]
        others += [os.path.join(class_folder, other) for other in of_class.others]
    if not (has_splits or splits_optional or split == "test"):
        raise UsageError(f"split must be left out for a folder without splits, got {split!r} with {folder}")
    if not files:
        got = f", but {by_extension(others)}" if others else ""
        raise UsageError(f"expected a folder with JPEG or PNG images, got {folder} without any{got}")
    notes = []
    if others:
        notes.append(f"ignored what isn't a JPEG or PNG image in {folder}: {by_extension(others)}")
    if listing.images:
        notes.append(f"no accuracy: the images in {folder} have no labels")
    class_names = tuple(map(_as_utf8, listing.folders)) or None
    return FolderSource(folder, tuple(files), class_names, file_system), notes


def files_digest(source: ImageSource) -> str:
    """A digest of names, sizes and times of the files of a folder; empty for other sources, which don't change."""
    whole = source.source if isinstance(source, EvenSample) else source
    if not isinstance(whole, FolderSource):
        return ""
    facts = []
    for file, _ in whole.files:
        try:
            status = os.stat(os.path.join(whole.folder, file))
            facts.append(os.fsencode(f"{file} {status.st_size} {status.st_mtime_ns}"))
        except OSError as error:  # such as a broken link
            facts.append(os.fsencode(f"{file} {error.strerror}"))
    return hashlib.sha256(b"\n".join(facts)).hexdigest()


def _has_splits(folder: str, listing: "_Listing", split: str, file_system: FileSystem) -> bool:
    """Whether a folder's folders are splits. A class may have a usual split's name: `train` beside `bus` and `car`."""
    if listing.folders and _USUAL_SPLITS.issuperset(listing.folders):
        return True
    if split not in listing.folders:
        return False
    return split not in _USUAL_SPLITS or bool(_list(os.path.join(folder, split), file_system).folders)


def by_extension(files: list[str]) -> str:
    """Such as `3 .webp, 1 .bmp`, the most frequent first; files without extension by their names."""
    kinds = Counter(os.path.splitext(file)[1].lower() or os.path.basename(file) for file in files).most_common()
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds[:_MAX_LISTED])
    return f"{listed}, …" if len(kinds) > _MAX_LISTED else listed


def _as_utf8(name: str) -> str:
    """A file name need not be valid UTF-8, but predictions and reports are."""
    return os.fsencode(name).decode("utf-8", errors="replace")


class _Listing(NamedTuple):
    """Sorted names of what a folder holds, except hidden files; folders named by numbers in the order of these."""

    images: list[str]
    folders: list[str]
    others: list[str]


def _list(folder: str, file_system: FileSystem) -> _Listing:
    listing = _Listing([], [], [])
    try:
        for entry in file_system.list(folder):
            if not entry.name.startswith("."):
                _kind(entry, listing).append(entry.name)
    except OSError as error:
        raise UsageError(
            "data must be auto, cifar10, cifar10_sample, synthetic or a folder of images, "
            f"got {folder!r}: {error.strerror or error}"
        ) from None
    images, folders, others = map(sorted, listing)
    if images and folders:
        raise UsageError(
            f"expected a folder of either images or class folders, got both in {folder}: "
            f"{images[0]} and the folder {folders[0]}"
        )
    if all(map(is_number, folders)):
        folders.sort(key=int)
    return _Listing(images, folders, others)


def _kind(entry: Entry, listing: _Listing) -> list[str]:
    if entry.is_folder:
        return listing.folders
    return listing.images if entry.is_file and entry.name.lower().endswith(_SUFFIXES) else listing.others
