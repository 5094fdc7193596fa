"""The cheaper search against a full grid: how good its choice is, and what it costs, as ratios.

    python main.py --config configs/cambricon_grid.py --output_dir runs/full
    python benchmarks/search_cost.py --full runs/full
    python main.py --config configs/cambricon_grid.py --search auto --output_dir runs/auto
    python benchmarks/search_cost.py --full runs/full --auto runs/auto

With `--auto`, two real sweeps are compared: the full grid's own medians judge what the search chose, and the seconds of
all runs are its cost. Without, the search is replayed on the full grid's recorded runs, over several seeds: a trial
with fewer images is given the speed of one of the recorded runs of its configuration, drawn at random, and takes that
run's start and its share of the rest. A replay knows no predictions.
"""

import json
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from absl import app, flags

from cambrian.commands.sweep.grid import Cell
from cambrian.commands.sweep.halving import HalvingSearch
from cambrian.commands.sweep.log import ResultLog
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.result import MEASURE, OK, Result, Trial

_FULL = flags.DEFINE_string("full", None, "Directory of a sweep with --search grid.", required=True)
_AUTO = flags.DEFINE_string("auto", None, "Directory of the same sweep with --search auto.")
_SEEDS = flags.DEFINE_integer("seeds", 20, "Replays.")
_OBJECTIVE = Objective()


def measured(results: list[Result], cell: Cell) -> list[Result]:
    """The results of a cell's full runs."""
    return [r for r in results if r.trial.cell == cell and r.trial.stage == MEASURE and not r.trial.num_images]


def median_speed(results: list[Result], cell: Cell) -> float:
    """Images/s; 0 of a cell with a run that isn't ok."""
    several = measured(results, cell)
    if not several or any(result.status != OK for result in several):
        return 0.0
    return statistics.median(result.report[_OBJECTIVE.key] for result in several)


def spread(results: list[Result], cell: Cell) -> float:
    speeds = [result.report[_OBJECTIVE.key] for result in measured(results, cell)]
    return (max(speeds) - min(speeds)) / statistics.median(speeds)


def cost_s(results: list[Result]) -> float:
    """Seconds of the runs; building is the same for both and left out."""
    return sum(result.elapsed_s for result in results if result.trial.stage == MEASURE)


def replay(full: list[Result], seed: int) -> list[Result]:
    """The results of the search, made of recorded ones."""
    cells = tuple(dict.fromkeys(result.trial.cell for result in full if result.trial.stage == MEASURE))
    repeats = max(result.trial.round for result in full)
    images = {cell: max(r.report.get("num_images") or 1 for r in measured(full, cell)) for cell in cells}
    search = HalvingSearch(cells, repeats, seed, _OBJECTIVE, images, {})
    chance = random.Random(seed)
    results: list[Result] = []
    while pending := search.stage(results).pending:
        results.append(_draw(pending[0], measured(full, pending[0].cell), images[pending[0].cell], chance))
    return results


def _draw(trial: Trial, recorded: list[Result], num_images: int, chance: random.Random) -> Result:
    drawn = chance.choice(recorded)
    if drawn.status != OK:
        return Result(trial, drawn.status, drawn.overflow, drawn.reason, drawn.elapsed_s, drawn.report)
    share = trial.num_images / num_images if trial.num_images else 1.0
    wall_ms = drawn.report["wall_ms"] * share
    elapsed_s = drawn.elapsed_s - (drawn.report["wall_ms"] - wall_ms) / 1e3
    return Result(trial, OK, elapsed_s=elapsed_s, report=drawn.report | {"wall_ms": wall_ms})


def compare(full: list[Result], found: list[Result]) -> tuple[float, float, float]:
    """How far the search's choice is below the best, as a share; the noise of the two; the share of the cost."""
    best = max((result.trial.cell for result in full), key=lambda cell: median_speed(full, cell))
    chosen = max((result.trial.cell for result in found), key=lambda cell: median_speed(found, cell))
    gap = 1 - median_speed(full, chosen) / median_speed(full, best)
    return gap, max(spread(full, best), spread(full, chosen)), cost_s(found) / cost_s(full)


def measure(_: list[str]) -> None:
    full = ResultLog(Path(_FULL.value) / "results.jsonl").results
    searches = json.loads((Path(_FULL.value) / "sweep.json").read_text())["command"]
    if _AUTO.value:
        found = [ResultLog(Path(_AUTO.value) / "results.jsonl").results]
    else:
        found = [replay(full, seed) for seed in range(_SEEDS.value)]
    compared = [compare(full, results) for results in found]
    gaps, noises, costs = zip(*compared, strict=True)
    print(searches)
    print(
        f"{len(found)} {'sweep' if _AUTO.value else 'replays'}: below the best by {statistics.median(gaps):.1%} in the "
        f"median and {max(gaps):.1%} at most, where runs of one configuration differ by up to {max(noises):.1%}; "
        f"cost {statistics.median(costs):.1%} of the full grid's in the median and {max(costs):.1%} at most"
    )
    beyond = [gap for gap, noise, _ in compared if gap > 0.02 + noise]
    dear = sum(cost > 0.25 for cost in costs)
    print(f"beyond 2 % and noise: {len(beyond)} of {len(found)}; above a quarter of the cost: {dear}")


if __name__ == "__main__":
    app.run(measure)
