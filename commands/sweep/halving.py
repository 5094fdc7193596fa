"""The cheaper search: prune cells predicted to be slow, then successive halving.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization" (2016): all candidates
get a small budget, the better third a larger one. The budget is the number of images; the finalists run as often and as
long as in a full grid.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from cambrian.commands.configuration import default_batch_size
from cambrian.commands.predict import PredictedCosts
from cambrian.commands.sweep.grid import Cell
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.result import MEASURE, OK, Result, Trial
from cambrian.commands.sweep.search import Stage, failure, failures, rounds, shuffled
from cambrian.sharding import MeshShape

# Predictions are accurate to 25%: a cell predicted at more than 1.25 / 0.75 of the best time can't be the best.
_PRUNE_ABOVE = 1.25 / 0.75
# Shares of the images on the first two rungs; the third has all.
_FRACTIONS = (0.25, 0.5)
_KEPT = 3  # one in three cells reaches the next rung
_MOST_FINALISTS = 3
# The first rung ends after this share of the full grid's estimated time. Together with the second rung (at most a third
# of the trials at twice the images) and the finalists (at most a tenth of all cells), the search takes below a quarter.
_FIRST_RUNG_SHARE = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class HalvingSearch:
    """Runs cells with a quarter of the images, a third of them with half, and up to three `repeats` times with all.

    Attributes:
      num_images: cell → images of a full run.
      predictions: cell → prediction, if there is one.
    """

    cells: tuple[Cell, ...]
    repeats: int
    seed: int
    objective: Objective
    num_images: Mapping[Cell, int]
    predictions: Mapping[Cell, PredictedCosts | None]

    def stage(self, results: Sequence[Result]) -> Stage:
        failed = failures(results)
        done = {result.trial: result for result in results}
        num_finalists = max(1, min(_MOST_FINALISTS, len(self.cells) // 10))

        first = [self._trial(cell, _FRACTIONS[0]) for cell in self.candidates()]
        is_tried = [trial in done or failure(trial.cell, failed) is not None for trial in first]
        tried = [trial for trial, over in zip(first, is_tried, strict=True) if over]
        waiting = [trial for trial, over in zip(first, is_tried, strict=True) if not over]
        ok = [trial.cell for trial in tried if failure(trial.cell, failed) is None]
        num_fit = sum(self.objective.violation(done[self._trial(cell, _FRACTIONS[0])].report) is None for cell in ok)
        spent_s = sum(done[trial].elapsed_s for trial in tried if trial in done)
        enough = num_fit >= num_finalists and spent_s >= _FIRST_RUNG_SHARE * self._full_grid_s(tried, done)
        if waiting and not enough:
            return Stage("first rung", (waiting[0],), len(ok) // _KEPT + num_finalists * self.repeats)

        survivors = self._best(ok, _FRACTIONS[0], done, max(num_finalists, math.ceil(len(ok) / _KEPT)))
        second = [self._trial(cell, _FRACTIONS[1]) for cell in survivors]
        if pending := [trial for trial in second if trial not in done]:
            return Stage("second rung", tuple(pending), num_finalists * self.repeats)

        ok = [cell for cell in survivors if failure(cell, failed) is None]
        finalists = self._best(ok, _FRACTIONS[1], done, num_finalists)
        trials = rounds(finalists, self.repeats, self.seed, results)
        return Stage(f"finalists, round {trials[0].round} of {self.repeats}" if trials else "", trials)

    def candidates(self) -> list[Cell]:
        """Returns the cells that aren't pruned, fastest prediction first; ties are in seeded order.

        Those whose launch is predicted to exceed the limit on latency are last.
        """
        pruned, limit_ms = self.pruned(), self.objective.max_latency_ms or math.inf
        left = [cell for cell in shuffled(self.cells, self.seed, 0) if cell not in pruned]
        return sorted(left, key=lambda cell: (self._launch_ms(cell) > limit_ms, self._predicted_ms(cell)))

    def pruned(self) -> dict[Cell, str]:
        """Returns cells predicted to be too slow to be the best → the reason."""
        predicted = {cell: ms for cell in self.cells if (ms := self._predicted_ms(cell)) > 0}
        if not predicted or self.objective.max_latency_ms is not None:  # the fastest may exceed the limit
            return {}
        best = min(predicted.values())
        return {
            cell: f"predicted to take {ms / best:.2f} times as long as the fastest"
            for cell, ms in predicted.items()
            if ms > _PRUNE_ABOVE * best
        }

    def _predicted_ms(self, cell: Cell) -> float:
        """Returns the predicted time of what the objective is of, a batch or an image; 0 without a prediction."""
        prediction = self.predictions.get(cell)
        if prediction is None or self.objective.key.startswith("latency_"):
            return self._launch_ms(cell)
        return prediction.ms_per_image

    def _launch_ms(self, cell: Cell) -> float:
        prediction = self.predictions.get(cell)
        return prediction.launch_ms if prediction else 0.0

    def _trial(self, cell: Cell, fraction: float) -> Trial:
        total = self.num_images[cell]
        # At least two full launches: a single or padded one isn't representative.
        predicted = self.predictions.get(cell)
        chosen = predicted.batch_size if predicted else default_batch_size(MeshShape.parse(str(cell["mesh"])), "cpu")
        batch_size = cell["batch_size"] or chosen
        launches = max(2, math.ceil(total * fraction / batch_size))
        num_images = launches * batch_size
        return Trial(cell, MEASURE, 1, num_images if num_images < total else 0)

    def _full_grid_s(self, trials: Sequence[Trial], done: Mapping[Trial, Result]) -> float:
        whole_s = []
        for trial in trials:
            if trial in done and done[trial].status == OK:
                result = done[trial]
                wall_s = (result.report.get("wall_ms") or 0.0) / 1e3
                whole_s.append(result.elapsed_s + wall_s * (self._share_of(trial) - 1))
        return statistics.mean(whole_s) * len(self.cells) * self.repeats if whole_s else math.inf

    def _share_of(self, trial: Trial) -> float:
        """Returns the ratio of the images of a full run to those of the trial."""
        return self.num_images[trial.cell] / trial.num_images if trial.num_images else 1.0

    def _best(self, cells: Sequence[Cell], fraction: float, done: Mapping[Trial, Result], count: int) -> list[Cell]:
        def key(cell: Cell) -> tuple[bool, float]:
            trial = self._trial(cell, fraction)
            report = done[trial].report
            value = report.get(self.objective.key)
            if value is not None and self.objective.key == "wall_ms":
                value *= self._share_of(trial)
            return self.objective.violation(report) is not None, self.objective.cost(value)

        return sorted(cells, key=key)[:count]
