"""Statistics of measurements from interleaved rounds."""

import dataclasses
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

_K = TypeVar("_K", bound=Hashable)


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
    """Median, minimum and maximum over the rounds of the ratio of two sides."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, numerators: Sequence[float], denominators: Sequence[float]) -> "Ratio":
        """Returns the statistics of `numerators` over `denominators`, one of each per round."""
        ratios = [above / below for above, below in zip(numerators, denominators, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.min:.2f}…{self.max:.2f})"


def best(rates: Mapping[_K, Sequence[float]]) -> _K:
    """Returns the key whose measurements have the highest median."""
    return max(rates, key=lambda key: statistics.median(rates[key]))
