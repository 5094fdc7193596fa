"""Sweeps of a small network from the command line: result, resumption, limits, what the answer names, building only."""

import csv
import json
import shlex

import pytest

from command import SMALL, Command, CommandHere, read_report, write_checkpoint

ROWS = {  # mesh, threads, batch size → status
    ("1x2", "1", "8"): "ok",
    ("1x2", "2", "8"): "ok",
    ("1x3", "1", "8"): "refused",
    ("1x3", "2", "8"): "refused",
    ("1x2", "1", "1026"): "out_of_memory",
    ("1x2", "2", "1026"): "out_of_memory",
    ("1x3", "1", "1026"): "out_of_memory",
    ("1x3", "2", "1026"): "out_of_memory",
}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    command = Command(tmp_path_factory.mktemp("home"))
    write_checkpoint(command.home / "small.safetensors", SMALL)
    return command


@pytest.fixture(scope="module")
def here(command):
    return CommandHere(command.home)


@pytest.fixture(scope="module")
def flags(command):
    small = ["--weights", "small.safetensors", "--image_size", "8", "--precision", "float32"]
    axes = ["--mesh", "1x2,1x3", "--threads", "1,2", "--batch_size", "8,1026"]
    build = [*small, *axes, "--repeats", "1", "--device_memory_limit", "1MiB"]
    return [*build, "--data", "synthetic", "--num_images", "32"]


@pytest.fixture(scope="module")
def first(command, flags):
    return command(*flags, "--output_dir", "sweep")


def rows(command):
    with (command.home / "sweep" / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_configuration_has_a_result(command, first):
    assert first.exit_code == 0, first.stderr
    assert {(row["mesh"], row["threads"], row["batch_size"]): row["status"] for row in rows(command)} == ROWS
    for row in rows(command):
        if row["status"] == "out_of_memory":
            assert row["overflow"] == "predicted"
            assert row["reason"].startswith("OutOfMemory: a device must hold ") and "limit of 1048576" in row["reason"]
        elif row["status"] == "refused":
            assert row["reason"].startswith("batch_size must be a multiple of the data axis of 3 in mesh 1x3, got ")
    results = [json.loads(line) for line in (command.home / "sweep" / "results.jsonl").read_text().splitlines()]
    assert sorted(result["stage"] for result in results) == ["build"] * 3 + ["measure"] * 2
    # Loading and building are done before the time that counts.
    for result in results:
        if result["status"] == "ok" and result["stage"] == "measure":
            assert result["report"]["build_ms"] is None and result["report"]["executable"] == "native"
            assert result["report"]["wall_ms"] < 1e3 * result["elapsed_s"]


def test_the_predicted_host_memory_is_near_the_peak(command, first):
    for row in rows(command):
        if row["status"] == "ok":
            predicted, peak = int(row["predicted_host_memory_bytes"]), int(row["peak_host_memory_bytes"])
            assert 0.8 < predicted / peak < 1.2


def test_the_same_command_again_runs_nothing(command, here, flags, first):
    results = command.home / "sweep" / "results.jsonl"
    before = results.read_bytes()
    again = here(*flags, "--output_dir", "sweep")
    assert again.exit_code == 0 and "runs left" not in again.stderr
    assert results.read_bytes() == before
    other = here(*flags, "--output_dir", "sweep", "--seed", 1)
    assert other.exit_code == 2
    assert other.error.startswith("sweep holds a sweep of another command: --fresh starts over; needed python ")
    assert "--seed 1" in other.error.partition(", got ")[2] and "--seed" not in other.error.partition(", got ")[0]


def test_the_answer_runs(command, first):
    (line,) = [line for line in first.stdout.splitlines() if line.startswith("python ")]
    program, script, *arguments = shlex.split(line)
    assert (program, script.rpartition("/")[2]) == ("python", "main.py")
    outcome = command(*arguments, "--output_dir", "winner")
    assert outcome.exit_code == 0, outcome.stderr
    report = read_report(command.home / "winner")
    best = rows(command)[0]
    assert (report["mesh"], str(report["threads"]), str(report["batch_size"])) == ("1x2", best["threads"], "8")
    assert report["build_ms"] is None


def test_compile_builds_each_executable_once_and_prints_its_path(command, here, flags, first):
    outcome = here(*flags[:-4], "--mode", "compile")
    assert outcome.exit_code == 1  # those of mesh 1x3 make no sense, 1026 images don't fit the memory
    paths = outcome.stdout.splitlines()
    assert paths == list(map(str, command.artifacts)) and len(paths) == 1
    assert sum("not built: OutOfMemory: a device must hold at least" in note for note in outcome.notes) == 2
    assert sum("refused: batch_size must be a multiple" in note for note in outcome.notes) == 2


def test_a_dry_run_lists_and_leaves_nothing(command, here, flags):
    outcome = here("--config", "tiny.py", *flags[4:], "--dry_run", "--output_dir", "listed")
    assert outcome.exit_code == 0, outcome.stderr
    assert not (command.home / "listed").exists()
    lines = outcome.stdout.splitlines()
    assert sum("mesh 1x2, threads" in line for line in lines) == 4
    assert lines[-1] == "8 configurations, 3 executables, predicted; nothing was run"
