"""Errors that a caller tells apart: to rebuild an artefact, or to report why a run failed."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cambrian.sharding import OutOfMemory, UsageError

if TYPE_CHECKING:
    from cambrian.engine.runtime.parity import Parity


class DamagedArtifact(UsageError):
    """A file of an artefact is missing, truncated, altered or not trusted; the message names it."""


class ArtifactExists(UsageError):
    """The path to save an artefact to already exists."""


class ParityError(RuntimeError):
    """The outputs differ from the unsharded float32 reference by more than the program's tolerance.

    Attributes:
      parity: the measured difference.
    """

    def __init__(self, message: str, parity: "Parity"):
        super().__init__(message)
        self.parity = parity

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.parity)


@contextlib.contextmanager
def damage_named(path: Path, expected: str) -> Iterator[None]:
    """Raises DamagedArtifact for whatever fails while a file is parsed or its program run: `path` must be `expected`.

    Libraries that read untrusted bytes raise errors of any type. Errors that describe something else pass:
    DamagedArtifact, ParityError, and running out of memory, which is raised as OutOfMemory.
    """
    try:
        yield
    except (DamagedArtifact, ParityError, OutOfMemory):
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(f"{path} must fit the memory: {one_line(error)}") from error
        raise DamagedArtifact(f"{path} must be {expected}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The first line of an error's message, after its type unless the message stands for itself."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    message = next(iter(str(error).strip().splitlines()), "")[:300]
    if isinstance(error, ValueError) and message:
        return message
    return f"{type(error).__name__}: {message}".removesuffix(": ")
