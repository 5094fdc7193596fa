"""What a sweep looks for: the report key to be best in, and what a configuration must keep to."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

_MORE_IS_BETTER = ("images_per_second",)


@dataclasses.dataclass(frozen=True, slots=True)
class Objective:
    """A report key to be best in, under constraints.

    Attributes:
      key: images_per_second (the most), latency_ms_p99 or wall_ms (the least).
      max_latency_ms: the most that latency_ms_p99 may be; None for anything.
      min_top1: the least that top1 may be, from 0 to 1; None for anything.
    """

    key: str = "images_per_second"
    max_latency_ms: float | None = None
    min_top1: float | None = None

    @property
    def more_is_better(self) -> bool:
        return self.key in _MORE_IS_BETTER

    def cost(self, value: float | None) -> float:
        """The value of `key` as something to be small, for sorting; infinite where there is none."""
        if value is None:
            return math.inf
        return -value if self.more_is_better else value

    def violation(self, values: Mapping[str, Any]) -> str | None:
        """Which constraint report values don't keep to, in words; None if they keep to all."""
        latency, top1 = values.get("latency_ms_p99"), values.get("top1")
        if self.max_latency_ms is not None and (latency is None or latency > self.max_latency_ms):
            got = "none" if latency is None else f"{latency:.1f}"
            return f"latency_ms_p99 must be at most {self.max_latency_ms:g}, got {got}"
        if self.min_top1 is not None and (top1 is None or top1 < self.min_top1):
            got = "none: it takes trained weights and labelled images" if top1 is None else f"{top1:.4f}"
            return f"top1 must be at least {self.min_top1:g}, got {got}"
        return None
