"""Which trials a sweep asks for, in which order, and how near the cheaper search comes to the full grid's best."""

import dataclasses
import random
import statistics

import pytest

from cambrian.commands.predict import PredictedCosts
from cambrian.commands.sweep.grid import Cell, Grid
from cambrian.commands.sweep.halving import HalvingSearch
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.result import Result, Trial
from cambrian.commands.sweep.search import GridSearch
from sweep_stand_in import make_grid

PAPER_GRID = make_grid(mesh=("2x16", "4x8", "8x4", "16x2", "32x1"), threads=tuple(range(2, 17, 2)))
LARGE_GRID = make_grid(
    mesh=("2x16", "4x8", "8x4", "16x2", "32x1"),
    threads=(1, 2, 4, 8),
    batch_size=(32, 64, 128, 256, 512),
    precision=("float32", "bfloat16"),
)
IMAGES = 2048


@dataclasses.dataclass
class Machine:
    """A made-up machine: a speed for each cell, noise on each run, and a start that no search can save."""

    seed: int
    noise: float = 0.02
    start_s: float = 5.0

    def __post_init__(self):
        chance = random.Random(self.seed)
        self.chance = chance
        self.factors = {}
        for flag, spread in (("mesh", 4.0), ("threads", 1.3), ("batch_size", 1.6), ("precision", 1.5)):
            for values in (PAPER_GRID.values(flag), LARGE_GRID.values(flag)):
                for value in values:
                    self.factors.setdefault((flag, value), chance.uniform(1.0, spread))
        self.peculiar = {}

    def speed(self, cell: Cell) -> float:
        """Images/s without noise; what the axes don't explain is as large as the noise."""
        peculiar = self.peculiar.setdefault(cell, random.Random(f"{self.seed} {cell}").uniform(0.97, 1.03))
        speed = 60.0 * peculiar
        for pair in cell.values:
            speed /= self.factors.get(pair, 1.0)
        return speed

    def run(self, trial: Trial) -> Result:
        images = trial.num_images or IMAGES
        speed = self.speed(trial.cell) * self.chance.gauss(1.0, self.noise)
        wall_s = images / speed
        report = {
            "images_per_second": speed,
            "wall_ms": 1e3 * wall_s,
            "latency_ms_p99": 1e3 / speed,
            "num_images": images,
        }
        return Result(trial, "ok", elapsed_s=self.start_s + wall_s, report=report)


def go(search, machine: Machine) -> list[Result]:
    results: list[Result] = []
    while pending := search.stage(results).pending:
        results.append(machine.run(pending[0]))
    return results


def auto(grid: Grid, seed: int, predictions=None, objective=None) -> HalvingSearch:
    counts = dict.fromkeys(grid.cells, IMAGES)
    return HalvingSearch(grid.cells, 3, seed, objective or Objective(), counts, predictions or {})


def test_the_grid_runs_in_rounds_over_all_cells_in_a_seeded_order():
    grid = make_grid(mesh=("1x2", "2x1"), threads=(1, 2, 3))
    results = go(GridSearch(grid.cells, 3, seed=0), Machine(0))
    trials = [result.trial for result in results]
    assert [trial.round for trial in trials] == [1] * 6 + [2] * 6 + [3] * 6
    orders = [tuple(trial.cell for trial in trials[start : start + 6]) for start in (0, 6, 12)]
    assert all(set(order) == set(grid.cells) for order in orders) and len(set(orders)) > 1
    assert trials == [result.trial for result in go(GridSearch(grid.cells, 3, seed=0), Machine(1))]
    assert trials != [result.trial for result in go(GridSearch(grid.cells, 3, seed=1), Machine(0))]


@pytest.mark.parametrize(
    "grid", [PAPER_GRID, pytest.param(LARGE_GRID, marks=pytest.mark.slow)], ids=["paper", "200 points"]
)
def test_auto_comes_near_the_best_at_a_quarter_of_the_cost(grid):
    gaps, costs = [], []
    for seed in range(10):
        machine = Machine(seed)
        full_s = sum(machine.run(Trial(cell)).elapsed_s for cell in grid.cells) * 3
        results = go(auto(grid, seed, predicted_roughly(grid, machine)), machine)
        finalists: dict[Cell, list[float]] = {}
        for result in results:
            if not result.trial.num_images:
                finalists.setdefault(result.trial.cell, []).append(result.report["images_per_second"])
        chosen = max(finalists, key=lambda cell: statistics.median(finalists[cell]))
        gaps.append(1 - machine.speed(chosen) / max(map(machine.speed, grid.cells)))
        costs.append(sum(result.elapsed_s for result in results) / full_s)
    assert max(costs) <= 0.25
    assert max(gaps) <= 0.02 + 2 * Machine(0).noise  # beyond noise
    assert statistics.median(gaps) <= 0.02


def predicted_roughly(grid: Grid, machine: Machine) -> dict[Cell, PredictedCosts]:
    """Predictions within a quarter of the truth, that know nothing of threads."""
    error = random.Random(machine.seed)
    known: dict[Cell, float] = {}
    predictions = {}
    for cell in grid.cells:
        like = Cell(tuple(pair for pair in cell.values if pair[0] != "threads"))
        ms = 1e3 / machine.speed(cell) * machine.factors.get(("threads", cell["threads"]), 1.0) ** -1
        known.setdefault(like, ms * error.uniform(0.8, 1.2))
        predictions[cell] = PredictedCosts(known[like] * 64, 64, 2**20)
    return predictions


def test_auto_is_the_same_when_resumed_at_any_point():
    results = go(auto(PAPER_GRID, 3), Machine(3))
    for count in range(len(results)):
        assert auto(PAPER_GRID, 3).stage(results[:count]).pending[0] == results[count].trial


def test_auto_prunes_what_is_predicted_to_be_too_slow():
    grid = make_grid(batch_size=(1, 2, 4))
    launch_ms = dict(zip(grid.cells, (10.0, 16.0, 80.0), strict=True))
    predictions = {cell: PredictedCosts(launch_ms[cell], cell["batch_size"], 0) for cell in grid.cells}
    search = auto(grid, 0, predictions)
    slow = grid.cells[2]
    assert search.pruned() == {slow: "predicted to take 2.50 times as long as the fastest"}
    assert search.candidates() == [grid.cells[1], grid.cells[0]]


def test_auto_prunes_nothing_that_may_be_best_by_its_latency():
    grid = make_grid(batch_size=(1, 2, 64))
    launch_ms = dict(zip(grid.cells, (10.0, 16.0, 80.0), strict=True))
    predictions = {cell: PredictedCosts(launch_ms[cell], cell["batch_size"], 0) for cell in grid.cells}
    least = auto(grid, 0, predictions, Objective("latency_ms_p99"))
    assert least.candidates() == [*grid.cells[:2]]
    assert least.pruned() == {grid.cells[2]: "predicted to take 8.00 times as long as the fastest"}
    bounded = auto(grid, 0, predictions, Objective(max_latency_ms=12))
    assert bounded.candidates() == [grid.cells[0], grid.cells[2], grid.cells[1]] and not bounded.pruned()


def test_auto_goes_on_until_something_keeps_within_the_constraints():
    grid = make_grid(threads=tuple(range(1, 31)))
    (only,) = auto(grid, 0, objective=(objective := Objective(min_top1=0.5))).candidates()[-1:]

    def run(trial: Trial) -> Result:
        report = {"images_per_second": 10.0, "wall_ms": 1000.0, "top1": 0.6 if trial.cell == only else 0.4}
        return Result(trial, "ok", elapsed_s=1.5, report=report | {"num_images": trial.num_images})

    search, results = auto(grid, 0, objective=objective), []
    while pending := search.stage(results).pending:
        results.append(run(pending[0]))
    assert [result.trial.cell for result in results[-3:]].count(only) == 1


def test_auto_leaves_out_what_fails_and_what_breaks_a_constraint():
    grid = make_grid(threads=tuple(range(1, 31)))
    objective = Objective(max_latency_ms=50)

    def run(trial: Trial) -> Result:
        threads = trial.cell["threads"]
        if threads % 3 == 0:
            return Result(trial, "crashed", reason="ended by SIGSEGV", elapsed_s=1.0)
        report = {"images_per_second": 1.0 * threads, "wall_ms": 1000.0, "latency_ms_p99": 10.0 * threads}
        return Result(trial, "ok", elapsed_s=1.5, report=report | {"num_images": trial.num_images})

    search, results = auto(grid, 0, objective=objective), []
    while pending := search.stage(results).pending:
        results.append(run(pending[0]))
    finalists = {result.trial.cell["threads"] for result in results if not result.trial.num_images}
    tried = {result.trial.cell["threads"] for result in results}
    allowed = sorted((threads for threads in tried if threads % 3 and threads <= 5), reverse=True)
    assert allowed and set(allowed[:3]) <= finalists and not any(threads % 3 == 0 for threads in finalists)
