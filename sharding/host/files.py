"""Files and folders that survive a crash, and paths that may name anything.

Data reaches the disk before the name that makes it visible. An error of writing always names its path.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

_ABANDONED_AFTER_S = 60.0  # far longer than from making a folder to locking it


def open_regular(path: Path) -> FileIO:
    """Opens a regular file for reading; refuses FIFOs, devices and sockets at once, without waiting for a writer.

    Raises:
      OSError: if the file can't be opened or isn't a regular one.
    """
    file = FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return file


def write_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Writes a new file through to the disk; the user's umask narrows `mode`."""
    with path_named(path), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Replaces a file by one rename: a reader sees the old or the new content, never a mixture."""
    temporary = temporary_sibling(path)
    try:
        with path_named(path):
            write_file(temporary, data)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


@contextlib.contextmanager
def path_named(path: Path) -> Iterator[None]:
    """Makes an OSError name `path`: those of `write` and `fsync`, such as a full disk, name no file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def temporary_sibling(path: Path) -> Path:
    """A hidden name beside `path`, on the same file system, that no other process uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Makes a directory that appears under `path` when the context ends, complete, or not at all.

    Yields:
      The hidden directory to write to. Its lock, which ends with the process, tells `remove_abandoned` that it is in
      use.

    Raises:
      FileExistsError: at the end, if `path` exists.
    """
    directory = temporary_sibling(path)
    directory.mkdir()
    lock = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield directory
        sync_directory(directory)
        try:
            os.rename(directory, path)
        except OSError:
            if path.exists():
                raise FileExistsError(errno.EEXIST, "File exists", str(path)) from None
            raise
        sync_directory(path.parent)
    finally:
        os.close(lock)
        shutil.rmtree(directory, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Removes the hidden directories in `folder` that `new_directory` left there when its process was killed."""
    for directory in folder.glob(".*.*"):
        if len(directory.suffix) != 33 or directory.is_symlink():  # not a name of `temporary_sibling`
            continue
        with contextlib.suppress(OSError):  # gone, in use, or on a file system without locks
            if time.time() - directory.stat().st_mtime < _ABANDONED_AFTER_S:
                continue
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(lock)


def sync_directory(path: Path) -> None:
    """Makes the renames and new names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with path_named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
