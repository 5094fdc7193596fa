"""What to run next: a pure function of the results so far, so that a resumed sweep goes on as an undisturbed one."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Protocol

from cambrian.commands.sweep.grid import Cell
from cambrian.commands.sweep.result import BUILD, MEASURE, OK, Result, Trial


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """What is to run now.

    Attributes:
      name: such as `round 2 of 3`.
      pending: its trials that haven't run, in order; empty when the search is done.
      later: about how many trials come after them.
    """

    name: str
    pending: tuple[Trial, ...]
    later: int = 0


class Search(Protocol):
    """A way to go through the cells."""

    def stage(self, results: Sequence[Result]) -> Stage: ...


def failures(results: Sequence[Result]) -> dict[Cell, Result]:
    """The first result that isn't ok, of each cell and of each executable that couldn't be built.

    Neither is tried again: it is a result.
    """
    failed: dict[Cell, Result] = {}
    for result in results:
        if result.status != OK:
            cell = result.trial.cell
            failed.setdefault(cell.executable if result.trial.stage == BUILD else cell, result)
    return failed


def failure(cell: Cell, failed: dict[Cell, Result]) -> Result | None:
    """Why a cell has no result, its own or that of its executable."""
    return failed.get(cell) or failed.get(cell.executable)


def shuffled(cells: Sequence[Cell], seed: int, round: int) -> list[Cell]:
    """The order of one round: the same for the same seed, another for each round, so that drift hits no cell always."""
    order = list(cells)
    random.Random(f"{seed}, {round}").shuffle(order)
    return order


@dataclasses.dataclass(frozen=True, slots=True)
class GridSearch:
    """Every cell, `repeats` times, in rounds over all of them."""

    cells: tuple[Cell, ...]
    repeats: int
    seed: int

    def stage(self, results: Sequence[Result]) -> Stage:
        failed = failures(results)
        done = {result.trial for result in results}
        pending = [
            trial
            for round in range(1, self.repeats + 1)
            for cell in shuffled(self.cells, self.seed, round)
            if failure(cell, failed) is None and (trial := Trial(cell, MEASURE, round)) not in done
        ]
        name = f"round {pending[0].round} of {self.repeats}" if pending else ""
        return Stage(name, tuple(pending))
