"""The ranking as a table on the terminal and in Markdown, and all measurements as CSV."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from cambrian.commands.console import counted, show_table
from cambrian.commands.output import csv_text
from cambrian.commands.sweep.grid import Grid
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.ranking import Standing
from cambrian.commands.sweep.result import OK
from cambrian.commands.sweep.text import number, status_text

_MOST_ROWS = 20  # on the terminal; files hold all
_MEDIANS = (
    "images_per_second",
    "device_images_per_second",
    "wall_ms",
    "latency_ms_p50",
    "latency_ms_p90",
    "latency_ms_p99",
    "decode_ms",
    "host_to_device_ms",
    "execute_ms",
    "device_to_host_ms",
    "postprocess_ms",
    "load_ms",
    "top1",
    "top5",
)
_CHOSEN = ("batch_size", "num_images")  # flags that may leave the choice to the run
_FACTS = (
    "intra_sample_flops_fraction",
    "predicted_memory_bytes_per_device",
    "predicted_host_memory_bytes",
)


def headers(objective: Objective) -> tuple[str, ...]:
    """Returns the names of the ranking's columns, among them the objective."""
    latency = f"{_latency(objective)[-3:]} ms"
    return "", "configuration", "images/s", "spread", latency, "wall ms", "MiB a device", "host MiB", "remark"


def _latency(objective: Objective) -> str:
    return objective.key if objective.key.startswith("latency_") else "latency_ms_p99"


def rows(standings: Sequence[Standing], best: Sequence[Standing], objective: Objective) -> list[tuple[str, ...]]:
    """Returns the ranking's rows under `headers`; = marks configurations indistinguishable from the best."""
    made = []
    for place, standing in enumerate(standings, start=1):
        mark = str(place) if standing.eligible else ""
        if standing in best[1:]:
            mark += " ="
        spread = standing.spread(objective.key)
        made.append(
            (
                mark,
                standing.name,
                number(standing.median("images_per_second")),
                "" if spread is None else f"{spread:.0%}",
                number(standing.median(_latency(objective))),
                number(standing.median("wall_ms")),
                _mebibytes(standing.fact("predicted_memory_bytes_per_device")),
                _mebibytes(max(standing.values("peak_host_memory_bytes"), default=None)),
                _remark(standing, objective),
            )
        )
    return made


def _remark(standing: Standing, objective: Objective) -> str:
    """The remark in a row of the ranking; may be empty."""
    if standing.status != OK:
        return status_text(standing) + (f": {standing.reason}" if standing.reason else "")
    remarks = [] if standing.complete else [f"{counted(standing.reports[0]['num_images'], 'image')} only"]
    if standing.is_unstable(objective.key):
        remarks.append("unstable")
    if standing.reason:
        remarks.append(standing.reason)
    return "; ".join(remarks)


def _mebibytes(num_bytes: float | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / 2**20:.0f}"


def print_ranking(standings: Sequence[Standing], best: Sequence[Standing], objective: Objective) -> None:
    """Prints the ranked table on standard output, of a long one the best."""
    table = Table(*headers(objective), box=None, padding=(0, 2, 0, 0))
    for column in table.columns[2:-1]:
        column.justify = "right"
    for row in rows(standings[:_MOST_ROWS], best, objective):
        table.add_row(*row)
    show_table(table, width=160)
    if len(standings) > _MOST_ROWS:
        print(f"… and {len(standings) - _MOST_ROWS} more in summary.csv")


def markdown(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---"] * len(names)
    return "".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |\n" for line in (names, rule, *lines))


def summary_csv(grid: Grid, standings: Sequence[Standing], objective: Objective) -> str:
    """Returns a CSV row per configuration, best first: flags, status, medians and the range of the objective."""
    table: list[list[Any]] = []
    flags = [flag for flag, _ in grid.axes]
    table.append(
        [
            "rank",
            *flags,
            *("status", "overflow", "reason", "runs", "unstable"),
            *(f"{objective.key}_{end}" for end in ("min", "max")),
            *_MEDIANS,
            *_FACTS,
            "peak_host_memory_bytes",
        ]
    )
    for place, standing in enumerate(standings, start=1):
        values = standing.values(objective.key)
        table.append(
            [
                place if standing.eligible else "",
                *(_value(standing, flag) for flag in flags),
                *(standing.status, standing.overflow, standing.reason),
                *(len(standing.reports), standing.is_unstable(objective.key)),
                *((min(values), max(values)) if values else ("", "")),
                *(standing.median(key) for key in _MEDIANS),
                *(standing.fact(key) for key in _FACTS),
                max(standing.values("peak_host_memory_bytes"), default=""),
            ]
        )
    return csv_text(table)


def _value(standing: Standing, flag: str) -> Any:
    chosen = standing.fact(flag) if flag in _CHOSEN else None
    return standing.cell[flag] if chosen is None else chosen
