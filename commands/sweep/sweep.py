"""Runs a sweep: its trials one after another, each in its own process, until the search is done."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cambrian.commands.predict import PredictedCosts
from cambrian.commands.sweep.directory import TRIALS, sweep_directory
from cambrian.commands.sweep.display import Display, State
from cambrian.commands.sweep.grid import Cell, Grid
from cambrian.commands.sweep.halving import HalvingSearch
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.process import kill_leftovers, run_process
from cambrian.commands.sweep.ranking import Standing, best_group, rank
from cambrian.commands.sweep.result import BUILD, MEASURE, REFUSED, RESULTS, Result, ResultLog, Trial
from cambrian.commands.sweep.search import GridSearch, Stage, time_left_s
from cambrian.commands.sweep.verdict import judge


@dataclasses.dataclass(frozen=True, slots=True)
class Sweep:
    """The definition of a sweep.

    Attributes:
      path: its directory.
      identity: see `sweep_directory`.
      run_command: returns the command that runs a cell on a number of images, 0 for its own, and writes report.json to
        the given folder.
      build_command: returns the command that makes a cell's executable; None if none is needed.
      resume: the command line that goes on with it, as a user types it.
      answer: returns the one that runs a cell.
      refused: invalid cell → reason.
      predictions: cell → prediction.
      num_images: cell → images of a full run.
      search: `grid` or `auto`.
      repeats: number of full runs of each measured configuration.
      seed: seed of the order.
      timeout_s: time limit of each process.
      fresh: whether to start over.
    """

    grid: Grid
    path: Path
    identity: Mapping[str, Any]
    run_command: Callable[[Cell, int, Path], list[str]]
    build_command: Callable[[Cell], list[str]] | None
    resume: str
    answer: Callable[[Cell], str]
    refused: Mapping[Cell, str]
    predictions: Mapping[Cell, PredictedCosts | None]
    num_images: Mapping[Cell, int]
    objective: Objective
    search: str = "grid"
    repeats: int = 3
    seed: int = 0
    timeout_s: float = 1800.0
    fresh: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The ranked configurations, best first, and all results in the order in which the trials ended."""

    standings: list[Standing]
    results: list[Result]


def run_sweep(sweep: Sweep, display: Display) -> Outcome:
    """Runs the trials that the search chooses and that the directory has no results for.

    A trial that overflows, crashes, times out or is refused is a result, and the sweep continues.

    Raises:
      UsageError: as `sweep_directory` and `ResultLog`.
      KeyboardInterrupt: after the current trial was terminated; it has no result and will run again.
      OSError: if a trial's process can't be started.
    """
    with sweep_directory(sweep.path, sweep.identity, sweep.fresh):
        kill_leftovers(_owner(sweep))
        log = ResultLog(sweep.path / RESULTS)
        refused = [Result(Trial(cell), REFUSED, reason=reason) for cell, reason in sweep.refused.items()]
        search, pruned = _search(sweep)
        with display:
            while True:
                results = [*refused, *log.results]
                stage = search.stage(results)
                standings = rank(sweep.grid, results, sweep.objective, sweep.predictions, pruned)
                trial = _next_trial(sweep, stage, log.results)
                display.show(_state(sweep, standings, log.results, stage, trial))
                if trial is None:
                    return Outcome(standings, log.results)
                log.append(_run(sweep, trial))


def halving_search(sweep: Sweep) -> HalvingSearch:
    """Returns the search of `--search auto`."""
    cells = tuple(cell for cell in sweep.grid.cells if cell not in sweep.refused)
    return HalvingSearch(cells, sweep.repeats, sweep.seed, sweep.objective, sweep.num_images, sweep.predictions)


def _search(sweep: Sweep) -> tuple[GridSearch | HalvingSearch, dict[Cell, str]]:
    search = halving_search(sweep)
    if sweep.search == "grid":
        return GridSearch(search.cells, sweep.repeats, sweep.seed), {}
    reasons = dict.fromkeys(search.cells, "the search had spent its share of the full grid's time")
    return search, reasons | search.pruned()


def _next_trial(sweep: Sweep, stage: Stage, results: list[Result]) -> Trial | None:
    """Returns the first pending trial, or first the build of its executable, which cells share."""
    if not stage.pending:
        return None
    trial = stage.pending[0]
    if sweep.build_command is None or trial.cell["execution"] == "online":
        return trial
    built = {result.trial.cell.executable for result in results if result.trial.stage == BUILD}
    return trial if trial.cell.executable in built else Trial(trial.cell, BUILD)


def _run(sweep: Sweep, trial: Trial) -> Result:
    folder = sweep.path / TRIALS / sweep.grid.folder(trial.cell) / _folder_name(trial)
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted trial
    folder.mkdir(parents=True)
    if trial.stage == BUILD:
        assert sweep.build_command is not None
        command = sweep.build_command(trial.cell)
    else:
        command = sweep.run_command(trial.cell, trial.num_images, folder)
    ended = run_process(command, folder, timeout_s=sweep.timeout_s, owner=_owner(sweep))
    return judge(trial, ended, folder, sweep.timeout_s)


def _folder_name(trial: Trial) -> str:
    if trial.stage == BUILD:
        return "build"
    return f"round-{trial.round}" if not trial.num_images else f"{trial.num_images}-images"


def _owner(sweep: Sweep) -> str:
    return str(sweep.path.resolve())


def _state(sweep: Sweep, standings: list[Standing], results: list[Result], stage: Stage, trial: Trial | None) -> State:
    waiting = {pending.cell for pending in stage.pending}
    settled = [standing for standing in standings if standing.cell not in waiting and not stage.later]
    group = best_group(standings, sweep.objective)
    running = "" if trial is None else sweep.grid.name(trial.cell)
    return State(
        stage=stage.name,
        running=f"building {running}" if trial is not None and trial.stage == BUILD else running,
        num_done=sum(result.trial.stage == MEASURE for result in results),
        num_left=len(stage.pending) + stage.later,
        time_left_s=time_left_s(stage, results),
        best=group[0] if group else None,
        settled=settled,
    )
