"""Chooses the next trials: a pure function of the results, so that a resumed sweep equals an uninterrupted one."""

import dataclasses
import random
import statistics
from collections.abc import Sequence

from cambrian.commands.sweep.grid import Cell
from cambrian.commands.sweep.result import BUILD, MEASURE, OK, Result, Trial


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a search.

    Attributes:
      name: such as `round 2 of 3`.
      pending: its trials that haven't run, in order; empty when the search is done.
      later: approximate number of trials after them.
    """

    name: str
    pending: tuple[Trial, ...]
    later: int = 0


def failures(results: Sequence[Result]) -> dict[Cell, Result]:
    """Returns the first failure of each cell, and of each executable that couldn't be built; neither is retried."""
    failed: dict[Cell, Result] = {}
    for result in results:
        if result.status != OK:
            cell = result.trial.cell
            failed.setdefault(cell.executable if result.trial.stage == BUILD else cell, result)
    return failed


def failure(cell: Cell, failed: dict[Cell, Result]) -> Result | None:
    """Returns the failure of a cell or of its executable."""
    return failed.get(cell) or failed.get(cell.executable)


def shuffled(cells: Sequence[Cell], seed: int, round: int) -> list[Cell]:
    """Returns the order of a round, which differs between rounds so that drift doesn't favour a cell."""
    order = list(cells)
    random.Random(f"{seed}, {round}").shuffle(order)
    return order


def rounds(cells: Sequence[Cell], repeats: int, seed: int, results: Sequence[Result]) -> tuple[Trial, ...]:
    """Returns the trials that are left of `repeats` rounds over all cells; one that failed isn't run again."""
    failed, done = failures(results), {result.trial for result in results}
    trials = (Trial(cell, MEASURE, round) for round in range(1, repeats + 1) for cell in shuffled(cells, seed, round))
    return tuple(trial for trial in trials if trial not in done and failure(trial.cell, failed) is None)


@dataclasses.dataclass(frozen=True, slots=True)
class GridSearch:
    """Runs every cell `repeats` times, in rounds over all cells."""

    cells: tuple[Cell, ...]
    repeats: int
    seed: int

    def stage(self, results: Sequence[Result]) -> Stage:
        pending = rounds(self.cells, self.repeats, self.seed, results)
        return Stage(f"round {pending[0].round} of {self.repeats}" if pending else "", pending)


def time_left_s(stage: Stage, results: Sequence[Result]) -> float | None:
    """Estimates the seconds until a sweep ends, from the times of its trials so far; None before the first.

    A pending trial counts as much as its configuration's earlier ones, else as the mean.
    """
    took: dict[object, list[float]] = {}
    for result in results:
        if result.trial.stage == MEASURE and result.status == OK:
            took.setdefault(result.trial.cell, []).append(result.elapsed_s)
    if not took:
        return None
    mean_s = statistics.mean(seconds for several in took.values() for seconds in several)
    pending_s = sum(statistics.mean(took.get(trial.cell, [mean_s])) for trial in stage.pending)
    builds = [result for result in results if result.trial.stage == BUILD]
    built = {result.trial.cell.executable for result in builds}
    unbuilt = {trial.cell.executable for trial in stage.pending} - built if builds else set()
    build_s = statistics.mean(result.elapsed_s for result in builds) if builds else 0.0
    return pending_s + stage.later * mean_s + len(unbuilt) * build_s
