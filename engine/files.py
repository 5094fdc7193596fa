"""Writing that survives a crash: data reaches the disk before the name that makes it visible."""

import os
import uuid
from pathlib import Path


def write_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Writes a new file through to the disk; `mode` is narrowed by the user's umask."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Replaces a file by one rename: a reader sees the old or the new content, never a mixture."""
    temporary = temporary_sibling(path)
    try:
        write_file(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def temporary_sibling(path: Path) -> Path:
    """A hidden name beside `path`, on the same file system, that no other process uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def sync_directory(path: Path) -> None:
    """Makes the renames and new names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
