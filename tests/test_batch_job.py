"""A batch job's folder, rows and report, with its workers in this process: what Ray does is tested in test_batch.py."""

import contextlib
import dataclasses
import os
import pickle
import socket
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest

import cambrian
from cambrian.commands.accuracy.top_k import top_k as accuracy_top_k
from cambrian.commands.batch import command as batch, pool
from cambrian.commands.batch.cluster import WorkerShare, check_reachable, cluster, share_cluster
from cambrian.commands.batch.worker import Worker
from cambrian.commands.flags import read_configuration
from cambrian.commands.run import classify
from cambrian.commands.run.run import run_command
from cambrian.engine.artifact.layout import read_artifact
from cambrian.sharding import OutOfMemory, UsageError
from command import LABELS, read_predictions, read_report, write_images
from flag_values import parse

pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")
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


@pytest.fixture(autouse=True)
def environment():
    """Restores the variables that a batch job sets for Ray: later tests start Ray by its own defaults."""
    with mock.patch.dict(os.environ):
        yield


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
    monkeypatch.setattr(batch, "cluster", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(batch, "share_cluster", lambda workers, manifest: WorkerShare(1, 0, 0))
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
def test_a_job_that_ends_early_keeps_what_is_finished(home, ray, tmp_path, monkeypatch, capsys, end):
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
    assert capsys.readouterr().err.endswith(
        f"finished results are in {tmp_path}; the same command with this --output_dir goes on\n"
    )
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


def test_logits_of_nan_are_noted(home, ray, tmp_path, monkeypatch):
    def top_k(logits, k):
        classes, probabilities = accuracy_top_k(logits, k)
        return classes, np.full_like(probabilities, np.nan)

    monkeypatch.setattr(classify, "top_k", top_k)
    run(tmp_path)
    notes = read_report(tmp_path)["notes"]
    assert "logits of NaN for 39 images: what is predicted there means nothing" in notes
    assert not any("probabilities" in note for note in notes)  # of which rows tell nothing


def test_workers_in_another_folder_find_the_key(home, ray, tmp_path, monkeypatch):
    whole = pool.classify_parts

    def elsewhere(*arguments, **options):
        with contextlib.chdir(tmp_path):
            return iter(list(whole(*arguments, **options)))

    monkeypatch.setattr(pool, "classify_parts", elsewhere)
    run(tmp_path / "out")
    assert read_report(tmp_path / "out")["executable"] == "native"


def test_a_folder_of_another_job_or_command_is_refused(home, ray, tmp_path):
    run(tmp_path / "job")
    kept = read_report(tmp_path / "job")
    write_images(tmp_path / "images", ["ant/1.png"])
    with pytest.raises(UsageError, match="of a job with other images$"):
        run(tmp_path / "job", data=tmp_path / "images")
    with pytest.raises(UsageError, match="of a job with another artefact$"):
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


def test_parquet_files_have_no_split(home, ray, tmp_path):
    pq.write_table(pa.table({"image": [b""]}), tmp_path / "a.parquet")
    message = "--split is of a folder of images: leave it out for Parquet files, got train"
    with pytest.raises(UsageError, match=message):
        run(tmp_path / "out", "--split", "train", data=tmp_path / "a.parquet")
    run(tmp_path / "out", data=tmp_path / "a.parquet")


def test_what_a_worker_refuses_ends_the_job_before_anything_is_written(home, ray, tmp_path, monkeypatch):
    def refuse(worker, part):
        raise UsageError("no such folder")

    monkeypatch.setattr(Worker, "_check_folder", refuse)
    with pytest.raises(UsageError, match=", process [0-9]+: no such folder"):
        run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_address_without_a_ray_cluster_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        with ThreadPoolExecutor(1) as pool, pytest.raises(UsageError, match=f"{port}: something else listens there"):
            pool.submit(answer)
            check_reachable(f"127.0.0.1:{port}")
    with pytest.raises(UsageError, match=f"got 127.0.0.1:{port}: Connection refused"):
        check_reachable(f"127.0.0.1:{port}")
    for address in ("ray://host:1", "host", "host:port", ":6379", "host:70000"):
        with pytest.raises(
            UsageError, match="ray_address must be HOST:PORT, or auto for a cluster of this machine, got"
        ):
            check_reachable(address)


def test_sigterm_while_ray_starts_interrupts_the_job(monkeypatch):
    def init(**_):
        raise SystemExit(15)  # as Ray's handler does

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(KeyboardInterrupt), cluster(""):
        pass


def node(alive: bool = True, **resources: float) -> dict:
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("workers", "nodes", "platform", "devices", "share"),
    [
        (1, [node(CPU=8)], "cpu", 1, WorkerShare(8, 0, 8)),
        (3, [node(CPU=8)], "cpu", 1, WorkerShare(2, 0, 2)),
        (3, [node(CPU=8), node(CPU=5), node(False, CPU=64)], "cpu", 1, WorkerShare(4, 0, 4)),
        (9, [node(CPU=8), node(CPU=2)], "cpu", 1, WorkerShare(1, 0, 0)),  # compiled for 2 cores
        (2, [node(CPU=8, GPU=4)], "gpu", 2, WorkerShare(4, 2, 0)),
        (6, [node(CPU=8, GPU=2)], "gpu", 1, WorkerShare(1, 1 / 3, 0)),
    ],
)
def test_a_cluster_is_divided_among_workers(home, monkeypatch, workers, nodes, platform, devices, share):
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    manifest = dataclasses.replace(
        read_artifact(home / "artifact", None)[0],
        platform=platform,
        mesh=cambrian.MeshShape(1, devices),
        fingerprint={"CPU threads": 2},
    )
    assert share_cluster(workers, manifest) == share


def test_more_workers_than_cores_or_gpus_are_refused(home, monkeypatch):
    monkeypatch.setattr("ray.nodes", lambda: [node(CPU=2, GPU=3)])
    manifest, _ = read_artifact(home / "artifact", None)
    with pytest.raises(UsageError, match="workers must be at most the 2 cores of the cluster, got 3"):
        share_cluster(3, manifest)
    manifest = dataclasses.replace(manifest, platform="gpu", mesh=cambrian.MeshShape(1, 2))
    with pytest.raises(UsageError, match="workers must have 2 of the cluster's 3 GPUs each, got 2 workers"):
        share_cluster(2, manifest)
