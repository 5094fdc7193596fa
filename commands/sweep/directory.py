"""The directory of a sweep, which belongs to one command and to one process at a time."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cambrian.commands.output import held_folder
from cambrian.commands.sweep.result import RESULTS
from cambrian.sharding import UsageError
from cambrian.sharding.host.files import replace_file

SWEEP = "sweep.json"
TRIALS = "trials"
FIGURES = "figures"
_FILES, _FOLDERS = (RESULTS, "report.html", "summary.csv", "ranking.md"), (TRIALS, FIGURES)


@contextlib.contextmanager
def sweep_directory(path: Path, identity: Mapping[str, Any], fresh: bool) -> Iterator[None]:
    """Holds `path` inside this context, as the directory of the sweep that `identity` describes.

    Args:
      identity: JSON-compatible; `command` as a user types it, and `environment`, all that its results depend on.
      fresh: remove the results of an earlier sweep.

    Raises:
      UsageError: if another process holds the directory, it can't be written to, it holds somebody else's files with
        the names of a sweep's, or, unless `fresh`, it belongs to another command or environment.
    """
    with held_folder(path):
        is_sweep = (path / SWEEP).exists()
        if not is_sweep and (foreign := [name for name in (*_FILES, *_FOLDERS) if (path / name).exists()]):
            raise UsageError(f"output_dir must be a folder of a sweep or without {foreign[0]}, got {path}")
        if fresh:
            _clear(path)
        elif is_sweep:
            _check(path, identity)
        if fresh or not is_sweep:
            replace_file(path / SWEEP, (json.dumps(identity, indent=2) + "\n").encode())
        yield


def _clear(path: Path) -> None:
    # Results go first: if this is interrupted, the directory holds a sweep without results.
    for name in _FILES:
        (path / name).unlink(missing_ok=True)
    for name in _FOLDERS:
        shutil.rmtree(path / name, ignore_errors=True)


def _check(path: Path, identity: Mapping[str, Any]) -> None:
    try:
        made = dict(json.loads((path / SWEEP).read_text()))
        command, environment = made["command"], dict(made["environment"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path / SWEEP} must describe a sweep, got {type(error).__name__} {error}") from None
    if command != identity["command"] or made.get("model") != identity["model"]:
        raise UsageError(
            f"{path} holds a sweep of another command: --fresh starts over; needed {command}, got {identity['command']}"
        )
    for name, here in identity["environment"].items():
        if (there := environment.get(name)) != here:
            raise UsageError(
                f"results in {path} must all be of one environment: --fresh starts over; "
                f"needed {name} {there}, got {here}"
            )
