"""Nothing finished is lost: sweeps that are killed, interrupted, resumed, started over, or meet another sweep."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import sweep_stand_in
from cambrian.commands.sweep.directory import sweep_directory
from cambrian.commands.sweep.process import kill_leftovers
from cambrian.commands.sweep.result import Result, ResultLog, Trial
from cambrian.sharding import UsageError
from sweep_stand_in import KILLED_GRID, KILLED_REPEATS, SCRIPT, counted, make_grid, make_sweep, ran, run
from waiting import settle

GRID = make_grid(mesh=("1x2", "2x1"), threads=(1, 2))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweep"


def lines(folder):
    return (folder / "results.jsonl").read_bytes().splitlines(keepends=True)


@pytest.mark.slow
def test_killed_twenty_times_it_ends_as_an_undisturbed_one(folder, tmp_path):
    kills = 20
    script = Path(sweep_stand_in.__file__)
    done = subprocess.run(
        [sys.executable, script, folder, str(kills)],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 15  # kills that met the sweep at work
    killed = ResultLog(folder / "results.jsonl").results
    undisturbed = run(make_sweep(tmp_path / "other" / "sweep", KILLED_GRID, repeats=KILLED_REPEATS)).results
    assert len(killed) == len(undisturbed) == len(KILLED_GRID.cells) * KILLED_REPEATS
    assert counted(killed) == counted(undisturbed)


def test_what_is_finished_does_not_run_again(folder):
    first = run(make_sweep(folder, GRID, repeats=2))
    assert set(ran(make_sweep(folder, GRID)).values()) == {2}
    again = run(make_sweep(folder, GRID, repeats=2))
    assert set(ran(make_sweep(folder, GRID)).values()) == {2}
    assert counted(again.results) == counted(first.results) and len(again.results) == 8


def test_a_line_cut_short_is_run_again_and_a_foreign_one_refused(folder):
    run(make_sweep(folder, GRID, repeats=1))
    written = lines(folder)
    (folder / "results.jsonl").write_bytes(b"".join(written[:-1]) + written[-1][:-20])
    outcome = run(make_sweep(folder, GRID, repeats=1))
    assert len(outcome.results) == len(lines(folder)) == 4
    assert sorted(ran(make_sweep(folder, GRID)).values()) == [1, 1, 1, 2]
    (folder / "results.jsonl").write_bytes(written[0] + b'{"cell": {}}\n')
    with pytest.raises(
        UsageError, match=r"each line of .*results.jsonl must be a result, got line 2 without: KeyError"
    ):
        run(make_sweep(folder, GRID, repeats=1))


def test_a_result_is_synced_before_the_next_trial_starts(folder, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    run(make_sweep(folder, GRID, repeats=1))
    sizes = [sum(map(len, lines(folder)[:count])) for count in range(1, 5)]
    assert [size for size in synced if size in sizes] == sizes


def test_a_sweep_of_another_command_is_refused_with_both_commands(folder):
    run(make_sweep(folder, GRID, repeats=1))
    identity = json.loads((folder / "sweep.json").read_text())
    other = identity | {"command": "python main.py --mesh 4x8"}
    with pytest.raises(UsageError) as raised:
        run(make_sweep(folder, GRID, repeats=1, identity=other))
    assert "needed python main.py --mesh 1x2, got python main.py --mesh 4x8" in str(raised.value)
    newer = identity | {"environment": {"processor": "another"}}
    with pytest.raises(UsageError, match="one environment.*needed processor stand-in, got another"):
        run(make_sweep(folder, GRID, repeats=1, identity=newer))
    assert len(lines(folder)) == 4

    fresh = run(make_sweep(folder, GRID, repeats=1, identity=other, fresh=True))
    assert len(fresh.results) == len(lines(folder)) == 4
    assert set(ran(make_sweep(folder, GRID)).values()) == {2}
    assert json.loads((folder / "sweep.json").read_text()) == other


def test_somebody_else_s_files_are_no_results_to_remove(folder):
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "mine.png").touch()
    for fresh in (True, False):
        with pytest.raises(UsageError, match="output_dir must be a folder of a sweep or without figures, got .*sweep"):
            run(make_sweep(folder, GRID, repeats=1, fresh=fresh))
    assert [path.name for path in folder.rglob("*")] == ["figures", "mine.png"]


def test_two_sweeps_at_once_are_refused(folder):
    sweep = make_sweep(folder, GRID, repeats=1)
    with (
        sweep_directory(folder, sweep.identity, fresh=False),
        pytest.raises(UsageError, match="output_dir must be a folder of no other running command, got .*sweep"),
    ):
        run(sweep)
    assert len(run(sweep).results) == 4


def test_a_full_disk_names_the_results(folder):
    folder.mkdir()
    log = ResultLog(folder / "results.jsonl")
    (folder / "results.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left on device: '{folder}/results.jsonl'"):
        log.append(Result(Trial(GRID.cells[0]), "ok"))


def test_an_interrupted_trial_is_no_result(folder, monkeypatch):
    sleeping = make_sweep(folder, GRID, script="[ $3 = 1 ] && exec sleep 100\n" + SCRIPT, repeats=1)
    wait = subprocess.Popen.wait

    def interrupted_wait(process, timeout=None):
        if timeout == sleeping.timeout_s:
            try:
                return wait(process, 0.2)
            except subprocess.TimeoutExpired:
                raise KeyboardInterrupt from None
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted_wait)
    with pytest.raises(KeyboardInterrupt):
        run(sleeping)
    monkeypatch.undo()
    assert kill_leftovers(str(folder.resolve())) == 0
    outcome = run(make_sweep(folder, GRID, repeats=1))
    assert {result.trial for result in outcome.results} == {Trial(cell) for cell in GRID.cells}
    assert all(result.status == "ok" for result in outcome.results)


def test_what_a_killed_sweep_left_running_is_ended(folder):
    folder.mkdir()
    left = subprocess.Popen(["sleep", "100"], env=os.environ | {"CAMBRIAN_SWEEP": str(folder.resolve())})
    other = subprocess.Popen(["sleep", "100"], env=os.environ | {"CAMBRIAN_SWEEP": str(folder)[:-1]})
    try:
        settle(lambda: all("CAMBRIAN_SWEEP" in psutil.Process(process.pid).environ() for process in (left, other)))
        run(make_sweep(folder, GRID, repeats=1))
        assert left.poll() is not None and other.poll() is None
    finally:
        for process in (left, other):
            process.kill()
            process.wait()
