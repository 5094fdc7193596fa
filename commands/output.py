"""The folder that a command writes its results to, and how a command ended."""

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import jax

from cambrian.commands.configuration import Configuration
from cambrian.sharding import OutOfMemory, UsageError


def make_output_dir(configuration: Configuration, results: Iterable[str] = ()) -> Path:
    """The folder for the results of a command: the one asked for, or a new one under runs/.

    Args:
      results: names of files that an earlier run may have left there, which are removed: they must not stand beside the
        report of a run that fails before its own.

    Raises:
      UsageError: if it can't be written to.
    """
    path = Path(configuration.output_dir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{configuration.mesh}")
    try:
        if configuration.output_dir:
            path.mkdir(parents=True, exist_ok=True)
            for result in results:
                (path / result).unlink(missing_ok=True)
            with tempfile.TemporaryFile(dir=path):  # fails now rather than after minutes of building
                return path
        number = 1
        while True:
            unused = path if number == 1 else path.with_name(f"{path.name}-{number}")
            try:
                unused.mkdir(parents=True)
                return unused
            except FileExistsError:
                number += 1
    except OSError as error:
        raise UsageError(f"output_dir must be a folder that can be written to, got {path}: {error.strerror}") from None


def failure(error: BaseException) -> tuple[str, str]:
    """The report's `status` and `failure_reason` of a command that an exception ended."""
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "interrupted by the user"
    exhausted = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    if exhausted or isinstance(error, (OutOfMemory, MemoryError)):
        return "out_of_memory", reason
    return "failed", reason
