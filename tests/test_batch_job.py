"""A batch job's folder, rows and report, with its workers in this process: what Ray does is tested in test_batch.py."""

import contextlib
import pickle

import numpy as np
import pytest

import cambrian
from cambrian.commands.batch import command as batch, pool
from cambrian.commands.batch.cluster import Share
from cambrian.commands.batch.worker import Worker
from cambrian.commands.flags import read_configuration
from cambrian.commands.run.run import run_command
from cambrian.sharding import OutOfMemory, UsageError
from cambrian.sharding.host import host
from command import LABELS, read_predictions, read_report, write_images
from flag_values import parse

pytest.importorskip("ray")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = [f"{label}/{index}.png" for label in LABELS for index in range(4)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with an artefact, its key, and pictures, one of which can't be read."""
    home = tmp_path_factory.mktemp("batch")
    kernel = np.random.default_rng(0).standard_normal((192, 10), np.float32)
    size = cambrian.Preprocessing((8, 8), (8, 8))
    classifier = cambrian.Classifier(lambda params, images: images.reshape(-1, 192) @ params, kernel, size, LABELS)
    for name, seed_kernel in (("artifact", kernel), ("other", -kernel)):
        executable = cambrian.compile(
            cambrian.Classifier(classifier.model, seed_kernel, size, LABELS),
            mesh="1x1",
            batch_size=4,
            platform="cpu",
            name="linear",
        )
        executable.save(home / name, signing_key=home / "key")
    write_images(home / "images", NAMES)
    (home / "images" / "elk" / "2.png").write_bytes(b"no picture")
    return home


@pytest.fixture
def ray(monkeypatch, home):
    """Replaces Ray Data's pool by a worker in this process; returns the parts that it was given, job by job."""
    jobs = []

    def classify_parts(parts, artifact, images, *, signing_key, share, **_):
        jobs.append([part.name for part in parts])
        worker = Worker(artifact, images, share.cores, signing_key)
        for finished in worker({"part": [pickle.dumps(part) for part in parts]})["finished"]:
            finished = pickle.loads(finished)
            if isinstance(finished, Exception):
                raise finished
            yield finished

    monkeypatch.chdir(home)
    monkeypatch.setattr(pool, "classify_parts", classify_parts)
    monkeypatch.setattr(host, "_permitted", set(host.permitted))
    monkeypatch.setattr(batch, "cluster", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(batch, "share_cluster", lambda workers, manifest: Share(1, 0, 0))
    return jobs


def run(output_dir, *flags, data="images", artifact="artifact"):
    key = ("--signing_key", "key", "--artifact", artifact, "--data", data, "--output_dir", output_dir)
    found = parse("--mode", "batch", *key, *flags)
    batch.batch_command(read_configuration(found), found)


def rows(output_dir):
    return sorted(pq.read_table(output_dir / "rows").to_pylist(), key=lambda row: row["path"])


def test_rows_and_report_are_those_of_a_run(home, ray, tmp_path, capsys):
    run(tmp_path / "batch")
    found = parse(
        *("--artifact", "artifact", "--signing_key", "key", "--data", "images", "--skip_bad_images"),
        *("--output_dir", tmp_path / "run"),
    )
    run_command(read_configuration(found), found)
    predictions = {row["image"]: row for row in read_predictions(tmp_path / "run")}
    found = rows(tmp_path / "batch")
    assert [row["path"] for row in found] == sorted(NAMES) and len(predictions) == 39
    for row in found:
        if row["path"] == "elk/2.png":
            assert row == dict.fromkeys(row) | {
                "path": "elk/2.png",
                "label": "elk",
                "label_index": 4,
                "error": "not a JPEG or PNG file",
            }
            continue
        expected = predictions[row["path"]]
        assert (row["label"], row["predicted"]) == (expected["label"], expected["predicted"])
        assert row["probability"] == pytest.approx(float(expected["probability"]), abs=1e-6)
        assert row["error"] is None and LABELS[row["label_index"]] == row["label"]
        assert len(row["top5"]) == 5 and row["top5"][0]["name"] == row["predicted"]
    of_batch, of_run = read_report(tmp_path / "batch"), read_report(tmp_path / "run")
    same = ("status", "num_images", "top1", "top5", "classes", "model", "mesh", "precision", "weights", "executable")
    assert {name: of_batch[name] for name in same} == {name: of_run[name] for name in same}
    assert (of_batch["num_unreadable"], of_batch["num_parts"], of_batch["num_parts_before"]) == (1, 5, 0)
    assert {path.name for path in (tmp_path / "batch").iterdir()} == {
        *("job.json", "report.json", "rows", "classes.csv", "confusion.png")
    }
    assert "39 of folder" in (printed := capsys.readouterr().out) and "unreadable" in printed


def test_a_job_goes_on_with_what_is_missing(home, ray, tmp_path):
    run(tmp_path)
    found = rows(tmp_path)
    first, *others = sorted((tmp_path / "rows").iterdir())
    before = {path: path.stat().st_mtime_ns for path in others}
    first.unlink()
    run(tmp_path, "--workers", "3")
    assert rows(tmp_path) == found and {path: path.stat().st_mtime_ns for path in others} == before
    assert read_report(tmp_path)["num_parts_before"] == 4
    run(tmp_path)
    assert [len(parts) for parts in ray] == [5, 1]  # nothing was left for a third
    assert (report := read_report(tmp_path))["status"] == "ok" and report["num_images"] == 39


@pytest.mark.parametrize("end", [KeyboardInterrupt(), OutOfMemory("on a machine: too large"), RuntimeError("broken")])
def test_a_job_that_ends_early_keeps_what_is_finished(home, ray, tmp_path, monkeypatch, end):
    whole = pool.classify_parts

    def some(parts, *arguments, **options):
        yield from whole(parts[:2], *arguments, **options)
        raise end

    monkeypatch.setattr(pool, "classify_parts", some)
    with pytest.raises(type(end)):
        run(tmp_path)
    report = read_report(tmp_path)
    status = {KeyboardInterrupt: "interrupted", OutOfMemory: "out_of_memory"}.get(type(end), "failed")
    assert (report["status"], report["num_images"], report["top1"]) == (status, 16, None)
    monkeypatch.setattr(pool, "classify_parts", whole)
    run(tmp_path)
    assert len(rows(tmp_path)) == 40 and [len(parts) for parts in ray] == [2, 3]


def test_a_part_that_never_came_is_an_error(home, ray, tmp_path, monkeypatch):
    whole = pool.classify_parts
    monkeypatch.setattr(pool, "classify_parts", lambda parts, *rest, **options: whole(parts[1:], *rest, **options))
    with pytest.raises(
        RuntimeError, match="expected a row for each of 40 images, got 31 and 1 errors, with 1 part missing"
    ):
        run(tmp_path)
    assert read_report(tmp_path)["status"] == "failed"


def test_a_folder_of_another_job_or_command_is_refused(home, ray, tmp_path):
    run(tmp_path / "job")
    kept = read_report(tmp_path / "job")
    write_images(tmp_path / "images", ["ant/1.png"])
    with pytest.raises(UsageError, match="of a job with other images$"):
        run(tmp_path / "job", data=tmp_path / "images")
    with pytest.raises(UsageError, match="of a job with another artifact$"):
        run(tmp_path / "job", artifact="other")
    found = parse(
        "--artifact", "artifact", "--signing_key", "key", "--data", "images", "--output_dir", tmp_path / "job"
    )
    with pytest.raises(UsageError, match="output_dir must be a folder without a batch job"):
        run_command(read_configuration(found), found)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "predictions.csv").write_text("mine")
    with pytest.raises(UsageError, match="got .*run with predictions.csv"):
        run(tmp_path / "run")
    assert read_report(tmp_path / "job") == kept


def test_what_a_worker_refuses_ends_the_job_before_anything_is_written(home, ray, tmp_path, monkeypatch):
    def refuse(worker, part):
        raise UsageError("no such folder")

    monkeypatch.setattr(Worker, "_check_folder", refuse)
    with pytest.raises(UsageError, match=", process [0-9]+: no such folder"):
        run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
