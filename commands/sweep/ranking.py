"""Where each configuration stands once its trials have ended, and which is best."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cambrian.commands.predict import Prediction
from cambrian.commands.sweep.grid import Cell
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.result import MEASURE, OK, Result
from cambrian.commands.sweep.search import failure, failures

UNSTABLE_ABOVE = 0.1  # spread, as a share of the median
NOT_RUN, PRUNED = "not_run", "pruned"


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """What a sweep knows of one configuration.

    Attributes:
      status: of its trials, `not_run` or `pruned` (left out by prediction, or measured less than the others).
      overflow, reason: see `Result`; a reason also where a constraint isn't kept to.
      reports: of its ok trials with the most images.
      complete: whether these have all the images of the configuration.
      failed: the result that isn't ok, if any.
    """

    cell: Cell
    name: str
    status: str
    reports: tuple[dict[str, Any], ...] = ()
    complete: bool = False
    overflow: str | None = None
    reason: str | None = None
    eligible: bool = False
    prediction: Prediction | None = None
    failed: Result | None = None

    def values(self, key: str) -> list[float]:
        return [value for report in self.reports if (value := report.get(key)) is not None]

    def median(self, key: str) -> float | None:
        values = self.values(key)
        return statistics.median(values) if values else None

    def spread(self, key: str) -> float | None:
        """Largest less smallest value, as a share of the median; None of fewer than two, or around 0."""
        values = self.values(key)
        middle = statistics.median(values) if values else 0.0
        return (max(values) - min(values)) / middle if len(values) > 1 and middle else None

    def is_unstable(self, key: str) -> bool:
        return (self.spread(key) or 0.0) > UNSTABLE_ABOVE

    def fact(self, key: str) -> Any:
        """What doesn't vary between runs, such as the batch size chosen; of a failed trial, if it came to it."""
        reports = self.reports or ((self.failed.report,) if self.failed else ())
        return next((value for report in reports if (value := report.get(key)) is not None), None)

    def range(self, key: str) -> tuple[float, float]:
        """The values that noise may give: those seen, or, of a single run, within the spread of a stable one."""
        values = self.values(key)
        if len(values) > 1:
            return min(values), max(values)
        return values[0] * (1 - UNSTABLE_ABOVE / 2), values[0] * (1 + UNSTABLE_ABOVE / 2)


def rank(
    cells: Sequence[Cell],
    names: Mapping[Cell, str],
    results: Sequence[Result],
    objective: Objective,
    predictions: Mapping[Cell, Prediction | None],
    pruned: Mapping[Cell, str],
) -> list[Standing]:
    """The standings, best first: those that keep to the constraints, by the objective; then the others with a reason.

    Where some were measured with fewer images, they stand behind those measured with all.
    """
    failed = failures(results)
    reports: dict[Cell, dict[int, list[dict[str, Any]]]] = {}
    for result in results:
        if result.status == OK and result.trial.stage == MEASURE:
            by_images = reports.setdefault(result.trial.cell, {})
            by_images.setdefault(result.trial.num_images, []).append(result.report)
    standings = []
    for cell in cells:
        common = {"cell": cell, "name": names[cell], "prediction": predictions.get(cell)}
        by_images = reports.get(cell, {})
        if (result := failure(cell, failed)) is not None:
            # What it did before doesn't count: it can't be relied on.
            standings.append(
                Standing(**common, status=result.status, overflow=result.overflow, reason=result.reason, failed=result)
            )
        elif by_images:
            complete = 0 in by_images
            best = by_images[0 if complete else max(by_images)]
            standing = Standing(**common, status=OK, reports=tuple(best), complete=complete)
            keys = ("latency_ms_p99", "top1")
            violation = objective.violation({key: standing.median(key) for key in keys})
            if standing.median(objective.key) is None:
                violation = f"{objective.key} is needed, got none: no image could be read"
            standings.append(dataclasses.replace(standing, eligible=violation is None, reason=violation))
        elif cell in pruned:
            standings.append(Standing(**common, status=PRUNED, reason=pruned[cell]))
        else:
            standings.append(Standing(**common, status=NOT_RUN))
    return sorted(
        standings,
        key=lambda s: (not s.eligible, s.status != OK, not s.complete, objective.cost(s.median(objective.key))),
    )


def best_group(ranking: Sequence[Standing], objective: Objective) -> list[Standing]:
    """The best configuration, then those that it can't be told from: whose range of values meets its own.

    Empty if none keeps to the constraints.
    """
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
