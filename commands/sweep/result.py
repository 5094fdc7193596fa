"""Trials of a sweep, their results, and results.jsonl, where a result is before the next trial starts."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cambrian.commands.sweep.grid import Cell
from cambrian.sharding import UsageError
from cambrian.sharding.host.files import path_named, sync_directory

RESULTS = "results.jsonl"
BUILD, MEASURE = "build", "measure"
OK, OVERFLOW, TIMEOUT, CRASHED, REFUSED, FAILED = "ok", "out_of_memory", "timeout", "crashed", "refused", "failed"


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """One process to run.

    Attributes:
      cell: the configuration; for a build, any one that shares the executable.
      stage: `build` (make the executable) or `measure`.
      round: number of the run of a cell with the same number of images, from 1.
      num_images: images to run; 0 for the configuration's number.
    """

    cell: Cell
    stage: str = MEASURE
    round: int = 1
    num_images: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """How a trial ended.

    Attributes:
      status: `ok`; `out_of_memory`; `timeout`; `crashed` (ended by a signal); `refused` (invalid flags or input);
        `failed`.
      overflow: `predicted` or `observed` if memory ran out, else None.
      reason: description of the failure; None if ok.
      elapsed_s: seconds of the whole process, including start and loading.
      report: the run's report.json without its long values; empty for a build or a missing report.
    """

    trial: Trial
    status: str
    overflow: str | None = None
    reason: str | None = None
    elapsed_s: float = 0.0
    report: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        trial = self.trial
        return {
            "cell": trial.cell.flags,
            "stage": trial.stage,
            "round": trial.round,
            "num_images": trial.num_images,
            "status": self.status,
            "overflow": self.overflow,
            "reason": self.reason,
            "elapsed_s": self.elapsed_s,
            "report": self.report,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Result":
        """The inverse of `to_json`.

        Raises:
          KeyError, TypeError, AttributeError: if an entry has another form.
        """
        cell = Cell(tuple(entry["cell"].items()))
        trial = Trial(cell, entry["stage"], entry["round"], entry["num_images"])
        return cls(
            trial, entry["status"], entry["overflow"], entry["reason"], float(entry["elapsed_s"]), dict(entry["report"])
        )


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
        with path_named(self._path), self._path.open("ab") as file:
            file.write(json.dumps(result.to_json()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_directory(self._path.parent)
        self.results.append(result)
