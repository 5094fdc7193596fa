"""Compares `--search auto` with a full grid: the quality of its choice and its cost, as ratios.

    python main.py --config configs/cambricon_grid.py --output_dir runs/full
    python benchmarks/search_cost.py --full runs/full
    python main.py --config configs/cambricon_grid.py --search auto --output_dir runs/auto
    python benchmarks/search_cost.py --full runs/full --auto runs/auto

With `--auto`, the script compares two real sweeps: the choice of the search is judged by the medians of the full grid,
and its cost is the total time of its runs. Without `--auto`, the search is replayed on the recorded runs of the full
grid with several seeds. A trial with fewer images has the speed of a randomly drawn recorded run of its configuration,
and takes the start-up time of that run plus its share of the remaining time. Replays work without predictions.
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
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.result import MEASURE, OK, Result, ResultLog, Trial

_FULL = flags.DEFINE_string("full", None, "Directory of a sweep with --search grid.", required=True)
_AUTO = flags.DEFINE_string("auto", None, "Directory of the same sweep with --search auto.")
_SEEDS = flags.DEFINE_integer("seeds", 20, "Number of replays.")
_OBJECTIVE = Objective()


def measured(results: list[Result], cell: Cell) -> list[Result]:
    """Returns the results of the full runs of a cell."""
    return [r for r in results if r.trial.cell == cell and r.trial.stage == MEASURE and not r.trial.num_images]


def median_speed(results: list[Result], cell: Cell) -> float:
    """Returns the median images/s of a cell; 0 if a run isn't ok."""
    several = measured(results, cell)
    if not several or any(result.status != OK for result in several):
        return 0.0
    return statistics.median(result.report[_OBJECTIVE.key] for result in several)


def spread(results: list[Result], cell: Cell) -> float:
    speeds = [result.report[_OBJECTIVE.key] for result in measured(results, cell)]
    return (max(speeds) - min(speeds)) / statistics.median(speeds)


def cost_s(results: list[Result]) -> float:
    """Returns the seconds of the runs, without building, which costs both searches the same."""
    return sum(result.elapsed_s for result in results if result.trial.stage == MEASURE)


def replay(full: list[Result], seed: int) -> list[Result]:
    """Replays the search on recorded results and returns its results."""
    cells = tuple(dict.fromkeys(result.trial.cell for result in full if result.trial.stage == MEASURE))
    repeats = max(result.trial.round for result in full)
    images = {cell: max(r.report.get("num_images") or 1 for r in measured(full, cell)) for cell in cells}
    search = HalvingSearch(cells, repeats, seed, _OBJECTIVE, images, {})
    rng = random.Random(seed)
    results: list[Result] = []
    while pending := search.stage(results).pending:
        results.append(_draw(pending[0], measured(full, pending[0].cell), images[pending[0].cell], rng))
    return results


def _draw(trial: Trial, recorded: list[Result], num_images: int, rng: random.Random) -> Result:
    drawn = rng.choice(recorded)
    if drawn.status != OK:
        return Result(trial, drawn.status, drawn.overflow, drawn.reason, drawn.elapsed_s, drawn.report)
    share = trial.num_images / num_images if trial.num_images else 1.0
    wall_ms = drawn.report["wall_ms"] * share
    elapsed_s = drawn.elapsed_s - (drawn.report["wall_ms"] - wall_ms) / 1e3
    return Result(trial, OK, elapsed_s=elapsed_s, report=drawn.report | {"wall_ms": wall_ms})


def compare(full: list[Result], found: list[Result]) -> tuple[float, float, float]:
    """Returns how far the choice is below the best, relatively; the noise of the two; and the relative cost."""
    best = max((result.trial.cell for result in full), key=lambda cell: median_speed(full, cell))
    chosen = max((result.trial.cell for result in found), key=lambda cell: median_speed(found, cell))
    gap = 1 - median_speed(full, chosen) / median_speed(full, best)
    return gap, max(spread(full, best), spread(full, chosen)), cost_s(found) / cost_s(full)


def measure(_: list[str]) -> None:
    full = ResultLog(Path(_FULL.value) / "results.jsonl").results
    command = json.loads((Path(_FULL.value) / "sweep.json").read_text())["command"]
    if _AUTO.value:
        found = [ResultLog(Path(_AUTO.value) / "results.jsonl").results]
    else:
        found = [replay(full, seed) for seed in range(_SEEDS.value)]
    compared = [compare(full, results) for results in found]
    gaps, noises, costs = zip(*compared, strict=True)
    print(command)
    print(
        f"{len(found)} {'sweep' if _AUTO.value else 'replays'}: median {statistics.median(gaps):.1%} and at most "
        f"{max(gaps):.1%} below the best, where runs of one configuration differ by up to {max(noises):.1%}; "
        f"median {statistics.median(costs):.1%} and at most {max(costs):.1%} of the cost of the full grid"
    )
    num_worse = sum(gap > 0.02 + noise for gap, noise, _ in compared)
    num_expensive = sum(cost > 0.25 for cost in costs)
    print(
        f"more than 2% and the noise below the best: {num_worse} of {len(found)}; "
        f"more than a quarter of the cost: {num_expensive}"
    )


if __name__ == "__main__":
    app.run(measure)
