"""The measurements of each side, their summary relative to ours, and its table."""

import dataclasses
import statistics
from collections.abc import Sequence

from rich.table import Table

from benchmarks.ratios import Ratio, best
from benchmarks.sides import OURS
from benchmarks.tables import make_table


@dataclasses.dataclass(slots=True)
class Result:
    """The measurements of a side in one mode and precision.

    Attributes:
      side: name of the side.
      mode: mode of execution.
      precision: float32, bfloat16 or int8.
      relative_errors: batch size → relative error of the logits against the reference.
      images_per_second: batch size → images/s of each round.
      latency_ms: latency at batch size 1 of each round.
    """

    side: str
    mode: str
    precision: str
    relative_errors: dict[int, float] = dataclasses.field(default_factory=dict)
    images_per_second: dict[int, list[float]] = dataclasses.field(default_factory=dict)
    latency_ms: list[float] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.side}, {self.mode}, {self.precision}"

    @property
    def best_batch(self) -> int:
        return best(self.images_per_second)

    @property
    def best_images_per_second(self) -> list[float]:
        return self.images_per_second[self.best_batch]


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: medians over the rounds. Ratios above 1 mean that ours is faster; None, that it is absent.

    Attributes:
      side: name of the side.
      precision: float32, bfloat16 or int8.
      mode: mode of execution.
      best_batch: batch size with the most images/s.
      images_per_second: images/s at that batch size.
      speedup: images/s of ours, at its best mode and batch size, over images/s of this side at its best batch size.
      latency_ms: latency at batch size 1.
      latency_speedup: latency of this side over the latency of ours in its best mode.
    """

    side: str
    precision: str
    mode: str
    best_batch: int
    images_per_second: float
    speedup: Ratio | None
    latency_ms: float
    latency_speedup: Ratio | None


def summarise(results: Sequence[Result]) -> list[Row]:
    """Returns a row for each result; all results are of one precision."""
    ours = {result.mode: result for result in results if result.side == OURS}
    rows = []
    for result in results:
        speedup = latency_speedup = None
        if ours:
            fastest = ours[best({mode: own.best_images_per_second for mode, own in ours.items()})]
            lowest = min(ours.values(), key=lambda own: statistics.median(own.latency_ms))
            speedup = Ratio.of(fastest.best_images_per_second, result.best_images_per_second)
            latency_speedup = Ratio.of(result.latency_ms, lowest.latency_ms)
        rows.append(
            Row(
                side=result.side,
                precision=result.precision,
                mode=result.mode,
                best_batch=result.best_batch,
                images_per_second=statistics.median(result.best_images_per_second),
                speedup=speedup,
                latency_ms=statistics.median(result.latency_ms),
                latency_speedup=latency_speedup,
            )
        )
    return rows


def result_table(title: str, rows: Sequence[Row]) -> Table:
    """Returns the table that `peers.py` prints."""
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
