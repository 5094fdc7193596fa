"""What was measured of each side, and its summary against ours."""

import dataclasses
import statistics
from collections.abc import Sequence

from benchmarks.ratios import Ratio, best
from benchmarks.sides import OURS


@dataclasses.dataclass(slots=True)
class Result:
    """One side in one mode and precision.

    Attributes:
      relative_errors: of the logits against the reference, by batch.
      images_per_second: one for each round, by batch.
      latency_ms: of batch 1, one for each round.
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
    """One line of the table: medians over the rounds; ratios above 1 say that ours is faster, None that it is absent.

    Attributes:
      speedup: images/s of ours, at its best mode and batch, over those of this side at its best batch.
      latency_speedup: latency of this side over that of ours at its best mode.
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
    """The rows of results of one precision, in their order."""
    ours = {result.mode: result for result in results if result.side == OURS}
    rows = []
    for result in results:
        speedup = latency_speedup = None
        if ours:
            fastest = ours[best({mode: own.best_images_per_second for mode, own in ours.items()})]
            promptest = min(ours.values(), key=lambda own: statistics.median(own.latency_ms))
            speedup = Ratio.of(fastest.best_images_per_second, result.best_images_per_second)
            latency_speedup = Ratio.of(result.latency_ms, promptest.latency_ms)
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
