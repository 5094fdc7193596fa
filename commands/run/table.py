"""The short table at the end of a run."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from cambrian.commands.accuracy.accuracy import accuracy_text
from cambrian.commands.console import counted, show_table, shown_ms
from cambrian.commands.report import Report
from cambrian.engine.runtime.metrics import PHASES


def print_table(report: Report) -> None:
    """Prints the main results of a run on standard output."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), title=_title(report), title_justify="left")
    for name, value in _rows(report):
        table.add_row(name, value)
    show_table(table)


def _title(report: Report) -> str:
    parts = f"{report.cards} cards, " if report.each_card else ""
    if report.each_process:
        parts = f"{report.num_processes} processes, "
    return (
        f"{report.model}, {parts}mesh {report.mesh} (model × data) on {report.platform}, batch {report.batch_size}, "
        f"{report.precision}, {counted(report.threads or 0, 'thread')}, {report.executable} executable"
    )


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    data, count = report.data or "", f"{report.num_images} of "
    yield "images", data if report.loadgen or data.startswith(count) else count + data
    yield from _loadgen_rows(report.loadgen or {})
    if report.skipped_images:
        yield "skipped", counted(len(report.skipped_images), "unreadable image")
    times = report.summary
    if times.images_per_second is not None:
        device = "" if times.device_images_per_second is None else f", devices {times.device_images_per_second:.1f}"
        yield "images/s", f"end to end {times.images_per_second:.1f}{device}"
    if report.each_card:
        rates = (f"{card['num_images']} at {card['images_per_second'] or 0:.1f}" for card in report.each_card)
        yield "each card", f"images at images/s {', '.join(rates)}"
    if report.each_process:
        yield "each process", f"images {', '.join(str(process['num_images']) for process in report.each_process)}"
    if times.latency_ms_p50 is not None:
        percentiles = (times.latency_ms_p50, times.latency_ms_p90, times.latency_ms_p99)
        yield (
            "query latency ms" if report.loadgen and report.loadgen.get("latency_ms_p50") else "batch latency ms",
            ", ".join(
                f"p{percent} {shown_ms(value)}" for percent, value in zip((50, 90, 99), percentiles, strict=True)
            ),
        )
    if times.decode_ms is not None:
        phases = ((phase, getattr(times, f"{phase}_ms")) for phase in PHASES)
        yield "phases ms", ", ".join(f"{phase.replace('_', ' ')} {value:.0f}" for phase, value in phases)
    if times.wall_ms is not None:
        yield "wall ms", f"{times.wall_ms:.0f}"
    if report.top1 is not None:
        yield "accuracy", accuracy_text(report)
    build = "artefact was there" if report.build_ms is None else f"{report.build_ms:.0f}"
    if report.load_ms is not None:
        yield "build, load ms", f"{build}, {report.load_ms:.0f}"
    if report.first_inference_ms is not None:
        yield "first result ms", f"{report.first_inference_ms:.0f} after the process started"
    if report.parity_max_relative_error is not None:
        agreement = report.parity_top1_agreement
        same = "" if agreement is None else f", same top-1 for {agreement:.1%}"
        reference = "the same integers, unsharded" if report.quantization else "unsharded float32"
        yield "parity", f"relative error {report.parity_max_relative_error:.1e} against {reference}{same}"
    if report.quantization:
        error, agreement = report.quantization["relative_error"], report.quantization["top1_agreement"]
        same = "" if agreement is None else f", same top-1 for {agreement:.1%}"
        count = report.quantization["num_images"]
        yield "int8", f"relative error {error:.1e} against float32{same}, on {count} calibration images"


def _loadgen_rows(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if not result:
        return
    test = f"{result['scenario']}, {result['test_mode']}"
    if "result" not in result:
        yield "LoadGen", test
        return
    queries = "1 query" if result["num_queries"] == 1 else f"{result['num_queries']} queries"
    yield "LoadGen", f"{test}: {result['result']}, {queries} at {result['target_qps']:.4g} samples/s"
    for reason in result["reasons"]:
        yield "reason", reason
