"""results.jsonl: a line per finished trial, on the disk before the next trial starts."""

import json
import os
from pathlib import Path

from cambrian.commands.sweep.result import Result
from cambrian.sharding import UsageError
from cambrian.sharding.host.files import sync_directory

RESULTS = "results.jsonl"


class ResultLog:
    """The results of a sweep, for a single writer.

    A partial line of a killed sweep is removed, and its trial runs again.

    Raises:
      UsageError: naming the line, if one isn't a result.
    """

    def __init__(self, path: Path):
        self._path = path
        self.results: list[Result] = []
        data = path.read_bytes() if path.exists() else b""
        finished = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(finished.splitlines(), start=1):
            try:
                self.results.append(Result.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UsageError(
                    f"each line of {path} must be a result, got line {number} without: {type(error).__name__} {error}"
                ) from None
        if len(finished) < len(data):
            os.truncate(path, len(finished))

    def append(self, result: Result) -> None:
        """Appends a result durably."""
        is_new = not self._path.exists()
        with self._path.open("ab") as file:
            file.write(json.dumps(result.to_json()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_directory(self._path.parent)
        self.results.append(result)
