"""report.json: what a run was asked for, how it deviated, and what it measured."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from cambrian.commands.accuracy.accuracy import Accuracy
from cambrian.commands.configuration import Configuration
from cambrian.commands.output import REPORT
from cambrian.engine.cards import Cards
from cambrian.engine.runtime.executable import Executable
from cambrian.engine.runtime.metrics import Summary, Timeline
from cambrian.engine.runtime.parity import Parity
from cambrian.sharding.host.files import replace_file


@dataclasses.dataclass(slots=True)
class Report:
    """The keys of report.json; None for what the run didn't reach.

    `status` is running, ok, out_of_memory, interrupted or failed. It is `running` from before the first result until
    the end: in the report of a process that was killed, nothing was measured, and predictions.csv holds whole batches.
    Times are in milliseconds, fractions from 0 to 1. `executable` is native, portable or online; `build_ms` is None if
    the artefact was cached. `summary` stands for its keys, which exclude loading; in mode loadgen, throughput and
    latency are LoadGen's, and `loadgen` holds scenario, test mode and `LoadGenResult`. With several cards, `each_card`
    holds what each computed, at which rate, and how it `ended` if it ended early; mesh and device_count are those of
    one card, and host memory is that of all. With several processes that share the mesh, `each_process` holds what each
    computed; latencies, phases and host memory are those of process 0. `classes` holds a `ClassAccuracy` per class.
    `parity_*` compare the executable's probe with the unsharded float32 reference; in int8 with the same integers,
    unsharded. `quantization` says how they were calibrated and how far they are from float32; None without.
    """

    flags: dict[str, Any]
    notes: list[str] = dataclasses.field(default_factory=list)
    status: str = "running"
    failure_reason: str | None = None
    model: str | None = None
    mesh: str | None = None
    model_parallel: int | None = None
    data_parallel: int | None = None
    device_count: int | None = None
    platform: str | None = None
    threads: int | None = None
    cards: int | None = None
    num_processes: int | None = None
    batch_size: int | None = None
    precision: str | None = None
    partition: str | None = None
    execution: str | None = None
    executable: str | None = None
    data: str | None = None
    weights: str | None = None
    num_images: int | None = None
    skipped_images: list[str] = dataclasses.field(default_factory=list)
    build_ms: float | None = None
    load_ms: float | None = None
    first_inference_ms: float | None = None
    summary: Summary = Summary()
    each_card: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    each_process: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    loadgen: dict[str, Any] | None = None
    top1: float | None = None
    top1_interval_95: tuple[float, float] | None = None
    top5: float | None = None
    top5_interval_95: tuple[float, float] | None = None
    classes: list[dict[str, Any]] | None = None
    parity_max_relative_error: float | None = None
    parity_top1_agreement: float | None = None
    quantization: dict[str, Any] | None = None
    intra_sample_flops_fraction: float | None = None
    predicted_memory_bytes_per_device: int | None = None
    predicted_host_memory_bytes: int | None = None
    peak_host_memory_bytes: int | None = None
    plan: dict[str, dict[str, str | int]] | None = None
    versions: dict[str, str] | None = None

    def request(self, configuration: Configuration) -> None:
        """Fills in the request; `describe` replaces it by what the executable is."""
        self.model_parallel, self.data_parallel = configuration.mesh.model, configuration.mesh.data
        self.mesh, self.device_count = str(configuration.mesh), configuration.mesh.num_devices
        self.platform, self.precision = configuration.platform, configuration.precision
        self.batch_size, self.weights = configuration.batch_size, configuration.weights

    def describe(self, executable: Executable | Cards) -> None:
        """Fills in the executable's properties."""
        mesh = executable.mesh_shape
        self.model = executable.name
        self.model_parallel, self.data_parallel = mesh.model, mesh.data
        self.mesh, self.device_count = str(mesh), mesh.num_devices
        self.platform = executable.platform
        self.batch_size = executable.batch_size
        self.precision = executable.metadata.get("precision")
        self.weights = executable.metadata.get("weights")
        self.intra_sample_flops_fraction = executable.metadata.get("intra_sample_flops_fraction")
        self.executable = executable.kind
        self.plan = executable.plan
        self.quantization = executable.metadata.get("quantization")
        self.partition = executable.metadata.get("partition", self.partition)
        if executable.parity is not None:
            self.compare(executable.parity)

    def compare(self, parity: Parity) -> None:
        """Fills in the comparison with the reference."""
        self.parity_max_relative_error = parity.max_relative_error
        self.parity_top1_agreement = parity.top1_agreement

    def measure(self, summary: Summary, num_images: int, skipped_images: list[str], accuracy: Accuracy | None) -> None:
        """Fills in times and results of the finished part of the run."""
        self.summary, self.num_images, self.skipped_images = summary, num_images, skipped_images
        if accuracy is not None:
            self.top1, self.top1_interval_95 = accuracy.top1, accuracy.top1_interval_95
            self.top5, self.top5_interval_95 = accuracy.top5, accuracy.top5_interval_95
            self.classes = accuracy.to_json()["classes"]

    def measure_cards(self, cards: Cards, timeline: Timeline) -> None:
        """Fills in what each card did; `reporting` adds the memory of this process to that of the cards."""
        self.peak_host_memory_bytes = cards.peak_host_memory_bytes
        for card in cards.cards:
            batches = timeline.of_card(card.index)
            summary = batches.summary()
            self.each_card.append(
                {
                    "num_images": batches.num_samples,
                    "images_per_second": summary.images_per_second,
                    "device_images_per_second": summary.device_images_per_second,
                    "ended": card.ended or None,
                }
            )

    def write(self, output_dir: Path) -> Path:
        """Writes `output_dir`/report.json in one step and returns its path."""
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values |= dataclasses.asdict(value) if field.name == "summary" else {field.name: value}
        return write_report(values, output_dir)


def write_report(values: dict[str, Any], output_dir: Path) -> Path:
    """Writes JSON-compatible values to `output_dir`/report.json in one step and returns its path.

    JSON has no NaN and no infinity: they become null.
    """
    values = json.loads(json.dumps(values), parse_constant=lambda _: None)
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    # A file name that isn't Unicode holds lone surrogates; escaped by a backslash, they are valid JSON.
    replace_file(output_dir / REPORT, text.encode(errors="backslashreplace"))
    return output_dir / REPORT
