"""Ranks configurations by the results of their trials."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cambrian.commands.predict import PredictedCosts
from cambrian.commands.sweep.grid import Cell, Grid
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.result import MEASURE, OK, Result
from cambrian.commands.sweep.search import failure, failures

UNSTABLE_ABOVE = 0.1  # spread, as a share of the median
NOT_RUN, PRUNED = "not_run", "pruned"


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """The results of one configuration.

    Attributes:
      status: status of its trials, `not_run`, or `pruned` (by prediction, or by the search).
      overflow, reason: see `Result`; `reason` also describes a violated constraint.
      reports: reports of its successful trials with the most images.
      complete: whether these cover all images of the configuration.
      eligible: whether it succeeded within the constraints.
      failed: its failed result, if any.
    """

    cell: Cell
    name: str
    status: str
    reports: tuple[dict[str, Any], ...] = ()
    complete: bool = False
    overflow: str | None = None
    reason: str | None = None
    eligible: bool = False
    prediction: PredictedCosts | None = None
    failed: Result | None = None

    def values(self, key: str) -> list[float]:
        return [value for report in self.reports if (value := report.get(key)) is not None]

    def median(self, key: str) -> float | None:
        values = self.values(key)
        return statistics.median(values) if values else None

    def spread(self, key: str) -> float | None:
        """Returns (max - min) / median; None for fewer than two values or a median of 0."""
        values = self.values(key)
        middle = statistics.median(values) if values else 0.0
        return (max(values) - min(values)) / middle if len(values) > 1 and middle else None

    def is_unstable(self, key: str) -> bool:
        return (self.spread(key) or 0.0) > UNSTABLE_ABOVE

    def fact(self, key: str) -> Any:
        """Returns a value that is the same in all runs, such as the batch size; a failed trial may have it too."""
        reports = self.reports or ((self.failed.report,) if self.failed else ())
        return next((value for report in reports if (value := report.get(key)) is not None), None)

    def range(self, key: str) -> tuple[float, float]:
        """Returns the range of noise: the observed one, or for a single run the spread of a stable configuration."""
        values = self.values(key)
        if len(values) > 1:
            return min(values), max(values)
        return values[0] * (1 - UNSTABLE_ABOVE / 2), values[0] * (1 + UNSTABLE_ABOVE / 2)


def rank(
    grid: Grid,
    results: Sequence[Result],
    objective: Objective,
    predictions: Mapping[Cell, PredictedCosts | None],
    pruned: Mapping[Cell, str],
) -> list[Standing]:
    """Ranks the configurations: eligible ones by the objective, then the others.

    Configurations measured with fewer images come after those measured with all.
    """
    failed = failures(results)
    reports: dict[Cell, dict[int, list[dict[str, Any]]]] = {}
    for result in results:
        if result.status == OK and result.trial.stage == MEASURE:
            by_images = reports.setdefault(result.trial.cell, {})
            by_images.setdefault(result.trial.num_images, []).append(result.report)
    standings = []
    for cell in grid.cells:
        common = {"cell": cell, "name": grid.name(cell), "prediction": predictions.get(cell)}
        by_images = reports.get(cell, {})
        if (result := failure(cell, failed)) is not None:
            # Earlier successes of a configuration that fails don't count.
            standings.append(
                Standing(**common, status=result.status, overflow=result.overflow, reason=result.reason, failed=result)
            )
        elif by_images:
            complete = 0 in by_images
            best = by_images[0 if complete else max(by_images)]
            standing = Standing(**common, status=OK, reports=tuple(best), complete=complete)
            keys = ("latency_ms_p99", "top1")
            verdict = next((r["loadgen"] for r in best if (r.get("loadgen") or {}).get("result") == "INVALID"), None)
            violation = objective.violation({key: standing.median(key) for key in keys} | {"loadgen": verdict})
            if violation is None and standing.median(objective.key) is None:
                violation = f"expected a value of {objective.key}, got none"
            standings.append(dataclasses.replace(standing, eligible=violation is None, reason=violation))
        elif cell in pruned:
            standings.append(Standing(**common, status=PRUNED, reason=pruned[cell]))
        else:
            standings.append(Standing(**common, status=NOT_RUN))

    def cost(standing: Standing) -> float:
        value = standing.median(objective.key)
        if value is not None and objective.key == "wall_ms" and not standing.complete:
            value /= standing.reports[0]["num_images"]  # some have more images than others
        return objective.cost(value)

    return sorted(standings, key=lambda s: (not s.eligible, s.status != OK, not s.complete, cost(s)))


def best_group(ranking: Sequence[Standing], objective: Objective) -> list[Standing]:
    """Returns the best configuration and those whose range of values overlaps with its own; empty without any."""
    if not ranking or not ranking[0].eligible:
        return []
    best = ranking[0]
    low, high = best.range(objective.key)
    return [best] + [
        other
        for other in ranking[1:]
        if other.eligible
        and other.complete == best.complete
        and other.range(objective.key)[0] <= high
        and low <= other.range(objective.key)[1]
    ]
