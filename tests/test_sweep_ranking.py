"""Ranking: medians and spread, what can't be told from the best, constraints, configurations without a result."""

import os

import pytest
from benchmarks.findings import findings

from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.ranking import best_group, rank
from cambrian.commands.sweep.result import Result, ResultLog, Trial
from cambrian.commands.sweep.text import duration, result_text
from sweep_stand_in import make_grid

GRID = make_grid(threads=(1, 2, 3, 4))


def results(**speeds):
    """`t1=(10, 11)`: the speeds of the runs with one thread."""
    made = []
    for name, several in speeds.items():
        cell = GRID.cells[int(name[1:]) - 1]
        for round, speed in enumerate(several, start=1):
            report = {
                "images_per_second": speed,
                "latency_ms_p99": 1e3 / speed,
                "wall_ms": 1e5 / speed,
                "top1": 0.5 + cell["threads"] / 100,
            }
            made.append(Result(Trial(cell, round=round), "ok", elapsed_s=1.0, report=report))
    return made


def ranked(made, objective=None, pruned=None):
    return rank(GRID, made, objective or Objective(), {}, pruned or {})


def threads(standings):
    return [standing.cell["threads"] for standing in standings]


def test_medians_rank_and_overlapping_ranges_cannot_be_told_apart():
    standings = ranked(results(t1=(10, 30, 20), t2=(41, 40, 42), t3=(39, 43, 40.5), t4=(39, 38, 39.5)))
    assert threads(standings) == [2, 3, 4, 1]
    assert [standing.median("images_per_second") for standing in standings] == [41, 40.5, 39, 20]
    assert [standing.is_unstable("images_per_second") for standing in standings] == [False, False, False, True]
    assert standings[3].spread("images_per_second") == pytest.approx(1.0)
    assert threads(best_group(standings, Objective())) == [2, 3]


@pytest.mark.parametrize(("speeds", "unstable"), [((100, 110, 100), False), ((100, 110.1, 100), True)])
def test_a_spread_above_a_tenth_is_unstable(speeds, unstable):
    assert ranked(results(t1=speeds))[0].is_unstable("images_per_second") == unstable


def test_single_runs_within_a_tenth_cannot_be_told_apart():
    standings = ranked(results(t1=(100,), t2=(91,), t3=(89,)))
    assert threads(best_group(standings, Objective())) == [1, 2]
    assert standings[0].spread("images_per_second") is None


@pytest.mark.parametrize(
    ("objective", "best"),
    [
        (Objective(), 4),
        (Objective("latency_ms_p99"), 4),
        (Objective("wall_ms"), 4),
        (Objective("images_per_second", max_latency_ms=1e3 / 40), 4),
        (Objective("images_per_second", max_latency_ms=1e3 / 40.1), None),
        (Objective("images_per_second", min_top1=0.54), 4),
        (Objective("images_per_second", min_top1=0.541), None),
    ],
)
def test_the_objective_and_its_constraints(objective, best):
    group = best_group(ranked(results(t1=(10, 10), t2=(20, 20), t3=(30, 30), t4=(40, 40)), objective), objective)
    assert (group[0].cell["threads"] if group else None) == best


def test_times_of_fewer_images_rank_by_the_image():
    made = []
    for cell, num_images, wall_ms in zip(GRID.cells, (0, 64, 128), (9000.0, 800.0, 1200.0), strict=False):
        report = {"num_images": num_images or 256, "wall_ms": wall_ms}
        made.append(Result(Trial(cell, num_images=num_images), "ok", elapsed_s=1.0, report=report))
    assert threads(ranked(made, Objective("wall_ms"))) == [1, 3, 2, 4]


def test_latency_is_best_when_least():
    made = results(t1=(10,), t2=(20,))
    made[0].report["latency_ms_p99"] = 1.0
    assert threads(best_group(ranked(made, Objective("latency_ms_p99")), Objective("latency_ms_p99")))[0] == 1


def test_what_breaks_a_constraint_stays_listed_with_the_reason():
    objective = Objective(min_top1=0.9)
    made = results(t1=(10, 10))
    made[0].report["top1"] = made[1].report["top1"] = None
    standing = ranked(made, objective)[0]
    assert result_text(standing, objective) == (
        "10.0 images/s (spread 0%); left out: top1 must be at least 0.9, got none: it takes trained weights and "
        "labelled images"
    )


def test_a_failure_in_any_round_and_what_was_not_measured_come_last():
    made = results(t1=(10, 11), t2=(20, 21))
    made.append(Result(Trial(GRID.cells[1], round=3), "out_of_memory", "observed", "killed", 1.0))
    standings = ranked(made, pruned={GRID.cells[2]: "predicted slow"})
    assert [(s.cell["threads"], s.status) for s in standings] == [
        (1, "ok"),
        (2, "out_of_memory"),
        (3, "pruned"),
        (4, "not_run"),
    ]
    assert [result_text(standing, Objective()) for standing in standings] == [
        "10.5 images/s (spread 10%)",
        "out of memory, observed: killed",
        "pruned: predicted slow",
        "not run",
    ]


def test_the_papers_findings_beside_those_of_a_sweep():
    grid = make_grid(mesh=("4x8", "8x4"), threads=(2, 4))
    made = []
    for cell, wall_ms in zip(grid.cells, (1000.0, 1300.0, 2000.0, 2400.0), strict=True):
        for round in (1, 2):
            report = {"images_per_second": 1.0, "latency_ms_p99": 1.0, "wall_ms": wall_ms + round}
            made.append(Result(Trial(cell, round=round), "ok", elapsed_s=1.0, report=report))
    standings = rank(grid, made, Objective(), {}, {})
    split, more_threads, overflow = findings(grid, standings)
    assert split.here == "the fastest is mesh 4x8, threads 2: 1002 ms"
    assert more_threads.here.startswith("slower: from the fewest to the most threads (2 to 4 where measured)")
    assert "by a factor of 1.25 (median over the meshes, 1.20 to 1.30)" in more_threads.here
    assert overflow.here == "0 of 4 overflow"
    assert findings(GRID, ranked(results(t1=(10,)))) == []


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (59.4, "59 s"), (60, "1 min"), (12000, "3 h 20 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_result_may_name_a_file_that_is_not_unicode(tmp_path):
    log = ResultLog(tmp_path / "results.jsonl")
    log.append(Result(Trial(GRID.cells[0]), "failed", reason=os.fsdecode(b"caf\xe9.png")))
    assert ResultLog(tmp_path / "results.jsonl").results == log.results


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        ({"result": "INVALID", "reasons": ["one query"]}, "LoadGen must find it VALID, got INVALID: one query"),
        (None, "expected a value of images_per_second, got none"),
    ],
)
def test_a_configuration_without_a_value_says_why(verdict, reason):
    report = {"images_per_second": None, "wall_ms": 1.0, "loadgen": verdict}
    first = ranked([Result(Trial(GRID.cells[0]), "ok", report=report)])[0]
    assert (first.eligible, first.reason) == (False, reason)
