"""Runs of the command that end well: report, predictions, the ways to execute, and how a run is cut short."""

import csv
import json
import os
import pty
import signal
import termios

import jax
import numpy as np
import pytest
from PIL import Image

from cambrian.models.resnet.variables import random_variables
from command import LABELS, ROOT, TINY, Command, read_predictions, read_report, write_checkpoint, write_images
from unsharded import inference_function
from waiting import num_lines, settle

_KEYS = """
    flags notes status failure_reason model mesh model_parallel data_parallel device_count platform threads cards
    num_processes batch_size precision partition execution executable data weights num_images skipped_images build_ms
    load_ms first_inference_ms wall_ms images_per_second device_images_per_second latency_ms_p50 latency_ms_p90
    latency_ms_p99 decode_ms host_to_device_ms execute_ms device_to_host_ms postprocess_ms each_card each_process
    loadgen top1 top1_interval_95 top5 top5_interval_95 classes parity_max_relative_error parity_top1_agreement
    quantization intra_sample_flops_fraction predicted_memory_bytes_per_device predicted_host_memory_bytes
    peak_host_memory_bytes plan versions
"""
REPORT_KEYS = _KEYS.split()
BATCH_SIZE = 8  # of `run_tiny`
COMPILED = ("--config", "tiny.py", "--mesh", "1x2", "--batch_size", "8", "--precision", "float32")
# Runs main.py, then writes what was traced, compiled and imported to the file named first.
WATCH = """
import json, runpy, sys
from jax import monitoring

watched, main = sys.argv[1:3]
sys.argv[1:3] = []
sys.path.insert(0, main.rpartition("/")[0])
events = []
monitoring.register_event_duration_secs_listener(lambda event, seconds, **_: events.append(event))
monitoring.register_event_listener(lambda event, **_: events.append(event))
try:
    runpy.run_path(main, run_name="__main__")
finally:
    kinds = ("jaxpr_trace", "jaxpr_to_mlir", "backend_compile", "compile_requests")
    counts = {kind: sum(kind in event for event in events) for kind in kinds}
    with open(watched, "w") as file:
        json.dump(counts | {name: name in sys.modules for name in ("flax", "cambrian.models.lowerings")}, file)
"""

WITHOUT_MODELS = """
import sys

class NoModels:
    def find_spec(self, name, *_):
        if name.startswith(("cambrian.models", "flax")):
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, NoModels())
from cambrian.commands.cli import cli
cli()
"""

# Runs main.py, and says on standard error when it compiles.
TELL_OF_COMPILING = """
import runpy, sys
from jax import monitoring

def tell(event, **_):
    if "compile_requests" in event:
        print("compiling", file=sys.stderr, flush=True)

monitoring.register_event_listener(tell)
main = sys.argv[1]
sys.argv[:2] = [main]
runpy.run_path(main, run_name="__main__")
"""


def watched(command, *flags):
    script, counts = command.home / "watch.py", command.home / "counts.json"
    script.write_text(WATCH)
    run = command.run_tiny(*flags, script=(script, counts, ROOT / "main.py"))
    return run, json.loads(counts.read_text())


@pytest.fixture(scope="module")
def first(command):
    """The first run, which builds, and what it traced, compiled and imported."""
    return watched(command, "--num_images", 20, "--precision", "float32")


@pytest.fixture(scope="module")
def command_with_artifact(command, first):
    return command


def test_the_report_of_a_run(first):
    run, _ = first
    report = run.report
    assert list(report) == REPORT_KEYS
    stated = {
        "status": "ok",
        "failure_reason": None,
        "model": "resnet18",
        "mesh": "1x2",
        "model_parallel": 1,
        "data_parallel": 2,
        "device_count": 2,
        "platform": "cpu",
        "threads": 2,
        "cards": 1,
        "num_processes": 1,
        "batch_size": BATCH_SIZE,
        "precision": "float32",
        "partition": "auto",
        "execution": "offline",
        "executable": "native",
        "data": "synthetic images, seed 0",
        "weights": "random, seed 0",
        "num_images": 20,
        "skipped_images": [],
        "each_card": [],
        "each_process": [],
        "top1": None,
        "top5": None,
        "parity_top1_agreement": 1.0,
        "intra_sample_flops_fraction": 0.0,
    }
    assert {name: report[name] for name in stated} == stated
    assert report["notes"] == run.outcome.notes
    assert ["random" in note or "synthetic" in note for note in report["notes"]] == [True, True]
    flags = {"mode": "run", "mesh": "1x2", "threads": 2, "num_images": 20, "data": "auto", "weights": "auto", "seed": 0}
    assert (flags | {"output_dir": str(run.output_dir)}).items() <= report["flags"].items()
    assert {entry["partition"] for entry in report["plan"].values()} == {"whole"}
    assert len(report["plan"]) == 22  # 20 convolutions, mean pooling, the last layer
    assert report["versions"]["jax"] == jax.__version__


def test_the_measurements_of_a_run(first):
    run, _ = first
    report = run.report
    times = [name for name in REPORT_KEYS if name.endswith("_ms") or "_ms_" in name]
    assert len(times) == 12 and all(isinstance(report[name], float) and report[name] > 0 for name in times)
    assert report["latency_ms_p50"] <= report["latency_ms_p90"] <= report["latency_ms_p99"] <= report["wall_ms"]
    assert report["images_per_second"] == pytest.approx(20 / report["wall_ms"] * 1e3)
    assert report["device_images_per_second"] >= report["images_per_second"]
    phases = ("decode", "host_to_device", "execute", "device_to_host", "postprocess")
    total = sum(report[f"{phase}_ms"] for phase in phases)
    assert total <= 2 * report["wall_ms"] * 1.001  # of two threads
    assert report["build_ms"] + report["load_ms"] < report["first_inference_ms"]
    assert 0 < report["parity_max_relative_error"] < 1e-4
    parameter_bytes = 11_164_362 * 4  # of ResNet18 with this stem and 10 classes, batch norm folded
    assert parameter_bytes < report["predicted_memory_bytes_per_device"] < 2 * parameter_bytes
    assert parameter_bytes < report["predicted_host_memory_bytes"]
    assert parameter_bytes < report["peak_host_memory_bytes"] < 8 * 2**30


def test_the_table_and_predictions_of_a_run(first):
    run, _ = first
    lines = run.outcome.stdout.splitlines()
    assert lines[0].startswith("resnet18, mesh 1x2 (model × data) on cpu, batch 8, float32, 2 threads, native")
    assert lines[-1] == f"report and predictions in {run.output_dir}"
    assert "accuracy" not in run.outcome.stdout
    assert [row["image"] for row in run.predictions] == [f"synthetic_{index:06d}" for index in range(20)]
    for row in run.predictions:
        assert row["label"] == "" and row["predicted"] in LABELS and 0.1 <= float(row["probability"]) <= 1


@pytest.mark.slow
def test_the_second_run_imports_no_model_and_compiles_nothing(command_with_artifact, first):
    built, counts = first
    assert counts["flax"] and counts["cambrian.models.lowerings"] and all(counts.values())
    again, counts = watched(command_with_artifact, "--num_images", 20, "--precision", "float32")
    assert not any(counts.values()), counts
    assert (again.report["build_ms"], again.report["executable"]) == (None, "native")
    assert again.predictions == built.predictions
    assert "artefact was there" in again.outcome.stdout


@pytest.mark.slow
def test_online_gives_the_same_predictions_and_saves_nothing(command_with_artifact, first):
    artifacts = command_with_artifact.artifacts
    online = command_with_artifact.run_tiny("--num_images", 20, "--precision", "float32", "--execution", "online")
    assert (online.report["executable"], online.report["execution"]) == ("online", "online")
    assert 0 < online.report["parity_max_relative_error"] < 1e-4
    assert online.predictions == first[0].predictions
    assert command_with_artifact.artifacts == artifacts


@pytest.mark.slow
def test_a_report_as_config_runs_the_same_again(command_with_artifact, first):
    report = first[0].output_dir / "report.json"
    before = report.read_bytes()
    outcome = command_with_artifact("--config", report, "--threads", 1, "--num_images", 9)
    assert outcome.exit_code == 0, outcome.stderr
    output_dir = command_with_artifact.home / outcome.stdout.splitlines()[-1].removeprefix("report and predictions in ")
    assert output_dir.parent == command_with_artifact.home / "runs"
    again = read_report(output_dir)
    assert (again["threads"], again["num_images"], again["mesh"], again["build_ms"]) == (1, 9, "1x2", None)
    assert again["flags"]["config"] == str(command_with_artifact.config)
    assert read_predictions(output_dir) == first[0].predictions[:9]
    assert report.read_bytes() == before


@pytest.mark.slow
def test_a_compiled_artifact_runs_without_models_and_weights(command_with_artifact, first, tmp_path):
    compiled = command_with_artifact("--mode", "compile", *COMPILED)
    assert compiled.exit_code == 0
    assert compiled.stderr == "note: no trained weights: running on random ones; --weights PATH takes a checkpoint\n"
    path = compiled.stdout.removesuffix("\n")
    script = tmp_path / "run.py"
    script.write_text(WITHOUT_MODELS)
    received = command_with_artifact.run("--artifact", path, "--num_images", 20, script=(script,))
    assert (received.report["executable"], received.report["mesh"]) == ("native", "1x2")
    assert received.predictions == first[0].predictions


@pytest.mark.slow
def test_accuracy_of_given_weights_on_labelled_images(command, tmp_path):
    weights = write_checkpoint(tmp_path / "weights.safetensors", TINY, seed=3)
    pixels = write_images(tmp_path / "drawn", [f"{index:02d}.png" for index in range(27)])
    infer = inference_function(TINY, random_variables(TINY, seed=3))
    logits = np.asarray(infer((pixels.astype(np.float32) / 255 - np.float32(0.5)) / np.float32(0.25)))
    ranked = np.argsort(-logits, axis=1)
    # Of three images, one is labelled as the network sees it, one as its third choice, one as its last.
    labels = [int(ranked[index, (0, 2, 9)[index % 3]]) for index in range(27)]
    names = [f"{LABELS[label]}/{index:02d}.png" for index, label in enumerate(labels)]
    for index, name in enumerate(names):
        (tmp_path / "labelled" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "drawn" / f"{index:02d}.png").rename(tmp_path / "labelled" / name)

    run = command.run_tiny("--weights", weights, "--data", tmp_path / "labelled", "--precision", "float32")
    (note,) = run.outcome.notes
    assert run.report["weights"] == str(weights) and note.startswith("3×3 stem computed with stride 1")
    assert (run.report["top1"], run.report["top5"]) == (pytest.approx(9 / 27), pytest.approx(18 / 27))
    # Wilson's intervals of 9 and of 18 in 27, by scipy.stats.binomtest.
    assert run.report["top1_interval_95"] == pytest.approx([0.186433, 0.521752], abs=1e-6)
    assert run.report["top5_interval_95"] == pytest.approx([0.478248, 0.813567], abs=1e-6)
    shown = "top-1 33.33% (95% interval 18.64 to 52.18), top-5 66.67% (95% interval 47.82 to 81.36)"
    assert shown in run.outcome.stdout
    classes = {entry["label"]: entry for entry in run.report["classes"]}
    assert tuple(classes) == LABELS and sum(entry["num_images"] for entry in classes.values()) == 27
    for number, (label, entry) in enumerate(classes.items()):
        right = sum(labels[index] == number for index in range(0, 27, 3))
        assert entry["num_images"] == labels.count(number)
        assert entry["recall"] == (pytest.approx(right / labels.count(number)) if number in labels else None), label
    with (run.output_dir / "classes.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == list(LABELS)
    with Image.open(run.output_dir / "confusion.png") as picture:
        assert picture.size[0] > 400
    rows = run.predictions
    assert [row["image"] for row in rows] == sorted(names)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row in rows:
        label, file = row["image"].split("/")
        index = int(file.removesuffix(".png"))
        assert (row["label"], row["predicted"]) == (label, LABELS[ranked[index, 0]])
        assert float(row["probability"]) == pytest.approx(probabilities[index].max(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_is_finished(command_with_artifact, tmp_path, signal_number):
    predictions = tmp_path / "output" / "predictions.csv"
    flags = (*COMPILED, "--num_images", 10**7, "--output_dir", tmp_path / "output")
    with command_with_artifact.start(*flags) as process:

        def has_predictions() -> bool:
            assert process.poll() is None
            return num_lines(predictions) > 1

        try:
            settle(has_predictions, timeout_s=60)
            process.send_signal(signal_number)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()  # else leaving `with` waits for its 10,000,000 images
    assert process.returncode == 130
    finished = f"finished results are in {tmp_path / 'output'}"
    assert errors.splitlines()[-2:] == [finished, "error: interrupted"]
    assert errors.count("error:") == 1 and "Traceback" not in errors
    report = read_report(tmp_path / "output")
    assert report["status"] == "interrupted" and report["images_per_second"] > 0
    with predictions.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "label", "predicted", "probability"]
    assert [row[0] for row in rows] == [f"synthetic_{index:06d}" for index in range(report["num_images"])]
    assert len(rows) % BATCH_SIZE == 0 and len(rows) > 0


@pytest.mark.slow
def test_an_interrupted_build_leaves_no_artifact(tmp_path):
    command = Command(tmp_path)
    script = tmp_path / "run.py"
    script.write_text(TELL_OF_COMPILING)
    flags = (*COMPILED, "--num_images", 10**7, "--output_dir", tmp_path / "output")
    cache = tmp_path / "cache" / "cambrian" / "artifacts"
    with command.start(*flags, script=(script, ROOT / "main.py")) as process:
        try:
            assert process.stderr and any(line == "compiling\n" for line in process.stderr)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "error: interrupted" and "Traceback" not in errors
    report = read_report(tmp_path / "output")
    assert (report["status"], report["num_images"], report["executable"]) == ("interrupted", None, None)
    assert list(cache.iterdir()) == []


@pytest.mark.slow
def test_a_progress_bar_on_a_terminal_only(command_with_artifact, first):
    assert "classifying" not in first[0].outcome.stderr and "\r" not in first[0].outcome.stderr
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 80))
    flags = (*COMPILED, "--num_images", 20)
    with command_with_artifact.start(*flags, stderr=end) as process:
        os.close(end)
        shown = b""
        try:
            while chunk := os.read(terminal, 4096):
                shown += chunk
        except OSError:  # how Linux ends the reading of a terminal that its writers have closed
            pass
        process.communicate(timeout=60)
    os.close(terminal)
    assert process.returncode == 0
    assert b"20/20" in shown and b"classifying" in shown and b"\r" in shown
