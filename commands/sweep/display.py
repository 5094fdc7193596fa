"""Shows a running sweep: a live table on a terminal, a line per configuration elsewhere."""

import dataclasses
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from cambrian.commands.console import counted
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.ranking import Standing
from cambrian.commands.sweep.text import duration, result_text, with_spread


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """The state of a sweep.

    Attributes:
      stage: stage of the search.
      running: description of the current trial; empty at the end.
      num_done, num_left: numbers of trials.
      time_left_s: estimated seconds; None while unknown.
      best: best configuration so far.
      settled: configurations with no trials left.
    """

    stage: str
    running: str
    num_done: int
    num_left: int
    time_left_s: float | None
    best: Standing | None
    settled: Sequence[Standing]


class Display:
    """Displays states; a context manager, which ends the live table."""

    def __init__(self, objective: Objective):
        self._objective = objective
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._stage = ""
        self._printed: set[str] = set()

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, state: State) -> None:
        if self._live is not None:
            self._live.update(self._table(state))
            return
        for standing in state.settled:
            if standing.name not in self._printed:
                self._printed.add(standing.name)
                print(f"{standing.name}: {result_text(standing, self._objective)}", flush=True)
        if state.stage and state.stage != self._stage:
            self._stage = state.stage
            left = "" if state.time_left_s is None else f", about {duration(state.time_left_s)}"
            print(f"{state.stage}: {counted(state.num_left, 'run')} left{left}", file=sys.stderr, flush=True)

    def _table(self, state: State) -> Table:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_row("done", f"{counted(state.num_done, 'run')}, {counted(len(state.settled), 'configuration')}")
        table.add_row("running", f"{state.running} ({state.stage})" if state.running else "")
        table.add_row("left", counted(state.num_left, "run"))
        best = state.best
        table.add_row("best so far", f"{best.name}: {with_spread(best, self._objective.key)}" if best else "")
        table.add_row("time left", "" if state.time_left_s is None else f"about {duration(state.time_left_s)}")
        return table
