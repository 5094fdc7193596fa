"""report.json of a training: what it was asked for, how it deviated, and what it reached."""

import dataclasses
from pathlib import Path
from typing import Any

from cambrian.commands.report import write_report


@dataclasses.dataclass(slots=True)
class TrainingReport:
    """The keys of report.json of a training; None for what it didn't reach.

    `status` is running, ok, out_of_memory, interrupted or failed, as in `Report`. `accuracy` holds, for float32 and
    bfloat16, the `Accuracy` of the trained weights on the images of `evaluated_on`. `images_per_second` is the speed of
    the last steps; `wall_ms` is the time of this process's training, including compilation, evaluation and checkpoints.
    `host_changes` are the process-wide settings that Cambrian changed (see `cambrian.host`).
    """

    flags: dict[str, Any]
    versions: dict[str, str]
    notes: list[str] = dataclasses.field(default_factory=list)
    status: str = "running"
    failure_reason: str | None = None
    model: str | None = None
    mesh: str | None = None
    platform: str | None = None
    precision: str | None = None
    batch_size: int | None = None
    recipe: dict[str, Any] | None = None
    data: str | None = None
    evaluated_on: str | None = None
    weights: str | None = None
    num_images: int | None = None
    num_steps: int | None = None
    wall_ms: float | None = None
    images_per_second: float | None = None
    accuracy: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    checkpoints: str | None = None
    trained_weights: str | None = None
    peak_host_memory_bytes: int | None = None
    host_changes: dict[str, str] = dataclasses.field(default_factory=dict)

    def write(self, output_dir: Path) -> Path:
        """Writes `output_dir`/report.json in one step and returns its path."""
        return write_report(dataclasses.asdict(self), output_dir)
