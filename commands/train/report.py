"""report.json of a training: what it was asked, what it did otherwise, and what came of it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from cambrian.commands.report import REPORT
from cambrian.engine.files import replace_file


@dataclasses.dataclass(slots=True)
class TrainingReport:
    """The keys of report.json of a training; what it didn't come to stays None.

    `status` is ok, out_of_memory, interrupted or failed. `accuracy` holds, for float32 and bfloat16, the
    `Accuracy` of the weights that are kept, on the images of `evaluated_on`. `images_per_second` is
    that of the last steps; `wall_ms` is what this process trained for, with compiling, evaluation and checkpoints.
    """

    flags: dict[str, Any]
    versions: dict[str, str]
    notes: list[str] = dataclasses.field(default_factory=list)
    status: str = "failed"
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

    def write(self, output_dir: Path) -> None:
        """Writes `output_dir`/report.json in one step."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"
        replace_file(output_dir / REPORT, text.encode())
