"""Batch jobs on Ray: what they write, and that each picture is there once whatever is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import LABELS, ROOT, Command, read_report, write_images
from waiting import settle

pytest.importorskip("ray", reason="needs the extra ray")
import pyarrow.parquet as pq

pytestmark = pytest.mark.slow
NAMES = [f"{label}/{index}.png" for label in LABELS for index in range(4)]
# Ray's own warnings are no errors; 8 images make a part of them.
SCRIPT = ("-W", "default", ROOT / "main.py")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with an artefact and pictures, one of which can't be read."""
    command = Command(tmp_path_factory.mktemp("batch"))
    built = command("--mode", "compile", *command.small_flags(), "--mesh", "1x1", "--batch_size", "8")
    assert built.exit_code == 0, built.stderr
    Path(built.stdout.split()[-1]).rename(command.home / "artifact")
    write_images(command.home / "images", NAMES)
    (command.home / "images" / "elk" / "2.png").write_bytes(b"no picture")
    return command.home


@pytest.fixture
def command(home) -> Command:
    command = Command(home)
    command.environment |= {"RAY_AUTH_MODE": "disabled", "JAX_PLATFORMS": "cpu"}
    return command


def batch(command: Command, output_dir: Path, *flags: object):
    return command("--mode", "batch", "--artifact", "artifact", "--output_dir", output_dir, *flags, script=SCRIPT)


def rows(output_dir: Path) -> list[dict]:
    return sorted(pq.read_table(output_dir / "rows").to_pylist(), key=lambda row: row["path"])


def num_parts(output_dir: Path) -> int:
    return len(list((output_dir / "rows").glob("part-*")))


def test_a_job_gives_what_a_run_gives_and_goes_on(command, tmp_path):
    run = command.run("--artifact", "artifact", "--data", "images", "--skip_bad_images")
    outcome = batch(command, tmp_path / "out", "--data", "images")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.notes == ["no accuracy: the weights are random", "1 image can't be read: see the column `error`"]
    found = rows(tmp_path / "out")
    assert [row["path"] for row in found] == sorted(NAMES)
    (bad,) = [row for row in found if row["error"]]
    assert (bad["path"], bad["label"], bad["predicted"]) == ("elk/2.png", "elk", None)
    predictions = {row["image"]: row for row in run.predictions}
    for row in found:
        if not row["error"]:
            expected = predictions[row["path"]]
            assert (row["label"], row["predicted"]) == (expected["label"], expected["predicted"])
            assert row["probability"] == pytest.approx(float(expected["probability"]), abs=1e-5)
            assert len(row["top5"]) == 5 and row["top5"][0]["name"] == row["predicted"]
    report = read_report(tmp_path / "out")
    assert (report["status"], report["num_images"], report["num_unreadable"]) == ("ok", 39, 1)
    assert (report["num_parts"], report["num_parts_before"]) == (5, 0)

    # A part whose file is missing is classified again, and no other.
    first, *others = sorted((tmp_path / "out" / "rows").iterdir())
    before = {path: path.stat().st_mtime_ns for path in others}
    first.unlink()
    assert batch(command, tmp_path / "out", "--data", "images", "--workers", "2").exit_code == 0
    assert rows(tmp_path / "out") == found
    assert {path: path.stat().st_mtime_ns for path in others} == before
    assert read_report(tmp_path / "out")["num_parts_before"] == 4
    # Another job's folder is refused, also by a run.
    write_images(tmp_path / "other", ["ant/1.png"])
    assert "of a job with other images" in batch(command, tmp_path / "out", "--data", tmp_path / "other").error
    refused = command("--artifact", "artifact", "--data", "images", "--output_dir", tmp_path / "out")
    assert "must be a folder without a batch job" in refused.error


def test_kills_of_a_worker_and_of_a_node_lose_nothing_and_double_nothing(command, tmp_path):
    names = [f"{index:04}.png" for index in range(3000)]
    write_images(tmp_path / "images", names[:1])
    for name in names[1:]:
        os.link(tmp_path / "images" / names[0], tmp_path / "images" / name)
    script = [sys.executable, Path(__file__).parent / "ray_cluster.py"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(script, env=command.environment, cwd=tmp_path, **pipes) as cluster:
        assert cluster.stdin is not None and cluster.stdout is not None
        try:
            address = cluster.stdout.readline().strip()
            flags = ("--data", tmp_path / "images", "--workers", "2", "--ray_address", address)
            job = command.start(
                *("--mode", "batch", "--artifact", "artifact", "--output_dir", tmp_path / "out", *flags), script=SCRIPT
            )
            for least, victim in ((1, "worker"), (8, "node")):
                settle(lambda: job.poll() is not None or num_parts(tmp_path / "out") >= least, 100)  # noqa: B023
                cluster.stdin.write(f"{victim}\n")
                cluster.stdin.flush()
                assert cluster.stdout.readline().startswith("killed ")
            _, stderr = job.communicate(timeout=200)
            assert job.returncode == 0, stderr
        finally:
            cluster.stdin.close()
    assert [row["path"] for row in rows(tmp_path / "out")] == names
    assert read_report(tmp_path / "out")["num_images"] == 3000
    assert "processes died and had to be replaced" in stderr
