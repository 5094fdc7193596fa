"""Runs of the command in two processes that share one mesh: as in one process, and ended with each other."""

import os
import signal

import pytest

from command import read_predictions, read_report
from host_processes import free_port
from waiting import num_lines, settle

pytestmark = pytest.mark.slow
# main.py, which takes a process that is silent for a few seconds for one that has ended.
IMPATIENT = """
from cambrian.commands.start import start
from cambrian.engine.hosts import connection

connection.SILENT_S = 6
start()
"""
NUM_IMAGES = 93  # the last batch has 5


@pytest.fixture(scope="module")
def flags(command):
    return [*command.small_flags(), "--data", "synthetic", "--batch_size", "8"]


@pytest.fixture(scope="module")
def alone(command, flags):
    return command.run(*flags, "--mesh", "1x2", "--num_images", NUM_IMAGES)


def start_two(command, *flags, **options):
    flags = [*flags, "--coordinator", f"127.0.0.1:{free_port()}", "--num_processes", "2"]
    return [command.start(*flags, "--process_id", process_id, **options) for process_id in (0, 1)]


def ends(processes) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each process."""
    try:
        said = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *each) for process, each in zip(processes, said, strict=True)]


def test_two_processes_predict_as_one_does(command, flags, alone):
    output = command.home / "shared"
    processes = start_two(command, *flags, "--mesh", "1x2", "--num_images", NUM_IMAGES, "--output_dir", output)
    (code, stdout, stderr), (other_code, other_stdout, other_stderr) = ends(processes)
    assert code == other_code == 0, stderr + other_stderr
    assert stderr.count("building the executable") == 1 and "building" not in other_stderr
    report = read_report(output)
    assert (report["status"], report["num_processes"], report["mesh"], report["num_images"]) == ("ok", 2, "1x2", 93)
    assert report["each_process"] == [{"num_images": 48}, {"num_images": 45}]
    assert report["executable"] == "portable" and 0 < report["parity_max_relative_error"] < 1e-4
    assert "2 processes, mesh 1x2" in stdout and "process 1: 45 images; report and predictions are" in other_stdout
    assert read_predictions(output) == alone.predictions


@pytest.mark.parametrize(
    ("mesh", "partition", "killed", "how"),
    [("1x2", "auto", 0, signal.SIGKILL), ("2x1", "intra_sample", 1, signal.SIGSTOP)],
)
def test_a_process_that_is_killed_or_stopped_ends_the_other(command, flags, alone, mesh, partition, killed, how):
    output = command.home / f"killed-{killed}"
    predictions = output / "predictions.csv"
    flags = [*flags, "--mesh", mesh, "--partition", partition, "--num_images", 10**6, "--output_dir", output]
    processes = start_two(command, *flags, script=("-c", IMPATIENT))
    try:
        settle(lambda: num_lines(predictions) > 100, timeout_s=90)
        os.kill(processes[killed].pid, how)
        processes[1 - killed].wait(60)
    finally:
        processes[killed].kill()
        ended = ends(processes)
    code, _, stderr = ended[1 - killed]
    assert code == 1 and "Traceback" not in stderr and "Check failure" not in stderr
    assert ("the model axis runs over several processes" in stderr) == (mesh == "2x1")
    (error,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: ProcessEnded: process {killed} ")
    rows = read_predictions(output)
    assert [row["image"] for row in rows] == [f"synthetic_{index:06d}" for index in range(len(rows))]
    same = [row["predicted"] for row in alone.predictions]
    assert len(rows) > 100 and [row["predicted"] for row in rows[:NUM_IMAGES]] == same
    if killed:
        report = read_report(output)
        assert report["status"] == "failed" and report["num_images"] == len(rows)
        assert "process 1 " in report["failure_reason"]
