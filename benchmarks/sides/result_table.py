"""The table that `peers.py` prints."""

from collections.abc import Sequence

from rich.table import Table

from benchmarks.output import make_table
from benchmarks.sides.result import Row


def result_table(title: str, rows: Sequence[Row]) -> Table:
    numbers = ("best batch", "images/s", "ours ÷ it", "batch-1 ms", "it ÷ ours")
    table = make_table(title, ("side", "precision", "mode"), numbers)
    for row in rows:
        table.add_row(
            row.side,
            row.precision,
            row.mode,
            str(row.best_batch),
            f"{row.images_per_second:.1f}",
            str(row.speedup or ""),
            f"{row.latency_ms:.1f}",
            str(row.latency_speedup or ""),
        )
    return table
