"""Where image files lie: on this machine's file system, or on one that pyarrow opens by URI."""

import dataclasses
import io
import os
from typing import Any, BinaryIO, NamedTuple, Protocol

from cambrian.commands.images.source import ERRORS_OF_A_FILE, UnreadableImage


class Entry(NamedTuple):
    """What a folder holds; FIFOs, devices and sockets are neither folders nor files."""

    name: str
    is_folder: bool
    is_file: bool


class FileSystem(Protocol):
    """Lists folders and opens files, by paths with `/` between their parts."""

    def list(self, folder: str) -> list[Entry]:
        """Lists a folder, in any order.

        Raises:
          OSError: if it can't be read.
        """
        ...

    def open(self, path: str) -> str | BinaryIO:
        """Returns the file as Pillow opens it: its path or its content.

        Raises:
          UnreadableImage: if it can't be read; a file that is returned as its path fails later.
          OSError: if reading failed for a reason that may pass.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class LocalFiles:
    """The file system of this machine."""

    def list(self, folder: str) -> list[Entry]:
        with os.scandir(folder) as entries:
            return [_entry(entry) for entry in entries]

    def open(self, path: str) -> str:
        return path


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteFiles:
    """A file system of pyarrow, such as S3."""

    file_system: Any  # pyarrow.fs.FileSystem, of an optional dependency

    def list(self, folder: str) -> list[Entry]:
        from pyarrow.fs import FileSelector, FileType

        found = self.file_system.get_file_info(FileSelector(folder))
        return [Entry(info.base_name, info.type == FileType.Directory, info.type == FileType.File) for info in found]

    def open(self, path: str) -> BinaryIO:
        try:
            with self.file_system.open_input_file(path) as file:
                return io.BytesIO(file.read())
        except OSError as error:
            is_forbidden = "ACCESS_DENIED" in str(error)  # by S3, whose errors have no number
            if error.errno not in ERRORS_OF_A_FILE and not is_forbidden:
                raise
            raise UnreadableImage(path, error.strerror or str(error)) from error


def _entry(entry: os.DirEntry[str]) -> Entry:
    """A broken link counts as a file, so that it is named."""
    try:
        if entry.is_dir():
            return Entry(entry.name, True, False)
        return Entry(entry.name, False, entry.is_file() or not os.path.exists(entry.path))
    except OSError:  # a loop of links
        return Entry(entry.name, False, True)
