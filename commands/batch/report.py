"""report.json and the table of a batch job."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cambrian.commands.accuracy.accuracy import Accuracy, accuracy_text
from cambrian.commands.batch.worker import Finished
from cambrian.commands.console import counted, show_table
from cambrian.commands.output import add_note
from cambrian.commands.report import write_report
from cambrian.engine.artifact.manifest import Manifest


@dataclasses.dataclass(slots=True)
class BatchReport:
    """The keys of report.json of a batch job; those that `Report` has too mean the same.

    `num_images` were classified and `num_unreadable` have an error, by this run of the job and earlier ones; of the
    `num_parts` output files, earlier ones had written `num_parts_before`. `wall_ms` is from the first part that a
    worker began to the last that one ended, in this run, and `images_per_second` counts the images of these parts.
    `load_ms` is the slowest worker's, `executable` names every kind that one loaded, and the parity is the worst.
    """

    flags: dict[str, Any]
    versions: dict[str, str]
    notes: list[str] = dataclasses.field(default_factory=list)
    status: str = "running"
    failure_reason: str | None = None
    model: str | None = None
    mesh: str | None = None
    device_count: int | None = None
    platform: str | None = None
    threads: int | None = None
    workers: int | None = None
    batch_size: int | None = None
    precision: str | None = None
    executable: str | None = None
    artifact: str | None = None
    data: str | None = None
    weights: str | None = None
    num_images: int | None = None
    num_unreadable: int | None = None
    num_parts: int | None = None
    num_parts_before: int | None = None
    load_ms: float | None = None
    wall_ms: float | None = None
    images_per_second: float | None = None
    top1: float | None = None
    top1_interval_95: tuple[float, float] | None = None
    top5: float | None = None
    top5_interval_95: tuple[float, float] | None = None
    classes: list[dict[str, Any]] | None = None
    parity_max_relative_error: float | None = None
    parity_top1_agreement: float | None = None
    peak_host_memory_bytes: int | None = None

    def describe(self, manifest: Manifest, artifact: str) -> None:
        """Fills in the artefact's properties."""
        self.artifact = artifact
        self.model, self.mesh, self.platform = manifest.name, str(manifest.mesh), manifest.platform
        self.device_count, self.batch_size = manifest.mesh.num_devices, manifest.input_spec.shape[0]
        self.precision, self.weights = manifest.metadata.get("precision"), manifest.metadata.get("weights")

    def add(self, parts: Sequence[Finished]) -> None:
        """Fills in what this run's parts tell."""
        for note in sorted({note for part in parts for note in part.notes}):
            add_note(note, self)
        if not parts:
            return
        processes = {part.worker for part in parts}
        if len(processes) > (self.workers or 0):
            died = f"{len(processes) - (self.workers or 0)} of the workers' processes"
            add_note(f"{died} died and had to be replaced; their parts were classified again", self)
        self.executable = ", ".join(sorted({part.executable["executable"] for part in parts}))
        self.load_ms = max(part.executable["load_ms"] for part in parts)
        self.parity_max_relative_error = max(part.executable["parity_max_relative_error"] for part in parts)
        agreements = [part.executable["parity_top1_agreement"] for part in parts]
        self.parity_top1_agreement = None if None in agreements else min(agreements)
        wall_s = max(part.ended_s for part in parts) - min(part.started_s for part in parts)
        self.wall_ms = 1e3 * wall_s
        self.images_per_second = sum(part.num_images for part in parts) / wall_s

    def measure(self, accuracy: Accuracy) -> None:
        """Fills in the accuracy."""
        self.top1, self.top1_interval_95 = accuracy.top1, accuracy.top1_interval_95
        self.top5, self.top5_interval_95 = accuracy.top5, accuracy.top5_interval_95
        self.classes = accuracy.to_json()["classes"]

    def write(self, output_dir: Path) -> Path:
        """Writes `output_dir`/report.json in one step and returns its path."""
        return write_report(dataclasses.asdict(self), output_dir)


def print_batch_table(report: BatchReport) -> None:
    """Prints the main results of a job on standard output."""
    from rich.table import Table  # a tenth of a second to import

    title = (
        f"{report.model}, mesh {report.mesh} (model × data) on {report.platform}, batch {report.batch_size}, "
        f"{report.precision}, {counted(report.workers or 0, 'worker')} of {counted(report.threads or 0, 'thread')}"
    )
    table = Table(
        show_header=False, box=None, padding=(0, 2, 0, 0), title=title, title_justify="left", min_width=len(title)
    )
    for name, value in _rows(report):
        table.add_row(name, value)
    show_table(table)


def _rows(report: BatchReport) -> Iterator[tuple[str, str]]:
    yield "images", f"{report.num_images} of {report.data}"
    if report.num_unreadable:
        yield "unreadable", f"{counted(report.num_unreadable, 'image')}, rows with an error"
    before = f", {report.num_parts_before} of them by earlier runs" if report.num_parts_before else ""
    yield "files", f"{report.num_parts}{before}"
    if report.images_per_second is not None:
        yield "images/s", f"{report.images_per_second:.1f}"
        yield "wall ms", f"{report.wall_ms:.0f}"
        yield "load ms", f"{report.load_ms:.0f}, {report.executable} executable"
    if report.top1 is not None:
        yield "accuracy", accuracy_text(report)
    if report.parity_max_relative_error is not None:
        yield "parity", f"relative error {report.parity_max_relative_error:.1e} against unsharded float32"
