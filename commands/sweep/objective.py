"""The objective of a sweep: a report key to optimise, under constraints."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

_MORE_IS_BETTER = ("images_per_second",)


@dataclasses.dataclass(frozen=True, slots=True)
class Objective:
    """A report key to optimise, under constraints.

    Attributes:
      key: images_per_second (maximised), latency_ms_p90, latency_ms_p99 or wall_ms (minimised).
      max_latency_ms: upper limit on latency_ms_p99; None for no limit.
      min_top1: lower limit on top1, from 0 to 1; None for no limit.
    """

    key: str = "images_per_second"
    max_latency_ms: float | None = None
    min_top1: float | None = None

    @property
    def more_is_better(self) -> bool:
        return self.key in _MORE_IS_BETTER

    def cost(self, value: float | None) -> float:
        """Returns the value of `key` as a cost to minimise; infinite for None."""
        if value is None:
            return math.inf
        return -value if self.more_is_better else value

    def violation(self, values: Mapping[str, Any]) -> str | None:
        """Describes the constraint that report values violate; None if there is none."""
        if (values.get("loadgen") or {}).get("result") == "INVALID":
            return f"LoadGen must find it VALID, got INVALID: {'; '.join(values['loadgen']['reasons'])}"
        latency, top1 = values.get("latency_ms_p99"), values.get("top1")
        if self.max_latency_ms is not None and (latency is None or latency > self.max_latency_ms):
            got = "none" if latency is None else f"{latency:.1f}"
            return f"latency_ms_p99 must be at most {self.max_latency_ms:g}, got {got}"
        if self.min_top1 is not None and (top1 is None or top1 < self.min_top1):
            got = "none: it takes trained weights and labelled images" if top1 is None else f"{top1:.4f}"
            return f"top1 must be at least {self.min_top1:g}, got {got}"
        return None
