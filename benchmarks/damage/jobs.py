"""Commands of seconds that the benchmark of faults disturbs, and whether their results are whole."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from command import LABELS, Command, Outcome, read_predictions, read_report, write_images

_NUM_IMAGES, _NUM_EPOCHS = 2000, 30  # the default recipe's epochs
_NETWORK = ("--weights", "small.safetensors", "--image_size", "8", "--precision", "float32", "--batch_size", "8")
_RUN = (*_NETWORK, "--data", "synthetic", "--output_dir", "out", "--mesh", "1x2")
FLAGS = {
    "build": (*_NETWORK, "--mode", "compile", "--mesh", "1x2"),
    "run": (*_RUN, "--num_images", str(_NUM_IMAGES)),
    "sweep": (*_RUN, "--num_images", "64", "--threads", "1,2", "--repeats", "1"),
    "training": (
        *("--mode", "train", "--weights", "small.safetensors", "--data", "images", "--batch_size", "10"),
        *("--mesh", "1x2", "--image_size", "8", "--precision", "float32", "--output_dir", "out"),
    ),
}


def prepare(kind: str, folder: Path) -> Outcome:
    """Makes `folder`/start, where a command of this kind starts, and runs it undisturbed in `folder`/expected."""
    (folder / "start").mkdir(parents=True)
    command = Command(folder / "start")
    command.small_flags()  # writes the weights
    write_images(
        command.home / "images",
        [f"{split}/{label}/{index}.png" for split in ("train", "test") for label in LABELS for index in range(2)],
    )
    if kind in ("run", "sweep"):
        _done(command(*FLAGS["build"]))
    return _done(Command(copied(folder / "start", folder / "expected"))(*FLAGS[kind]))


def _done(outcome: Outcome) -> Outcome:
    if outcome.exit_code:
        raise RuntimeError(outcome.stderr)
    return outcome


def copied(start: Path, home: Path) -> Path:
    return Path(shutil.copytree(start, home, symlinks=True))


def find_fault(kind: str, home: Path, expected: Path) -> str:
    """Returns what a finished command's results lack; empty if they are whole."""
    try:
        return _FINDERS[kind](home, expected)
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"


def find_misleading(kind: str, home: Path, expected: Path) -> str:
    """Returns what a killed command left that passes for a finished one; empty if nothing does."""
    if kind == "build":
        return _artifact_fault(home, expected)
    if kind == "sweep" or not (home / "out" / "report.json").exists():
        return ""
    report = read_report(home / "out")
    if report["status"] == "ok":
        return find_fault(kind, home, expected)
    if kind == "run" and (home / "out" / "predictions.csv").exists():
        rows = read_predictions(home / "out")
        return "" if rows == read_predictions(expected / "out")[: len(rows)] else "predictions differ"
    return ""


def _artifact_fault(home: Path, expected: Path) -> str:
    """Every artefact that has appeared is complete."""
    from cambrian.engine.artifact.manifest import read_manifest

    for artifact in (home / "cache" / "cambrian" / "artifacts").glob("[!.]*"):
        manifest, _ = read_manifest(artifact, None)
        for name, record in manifest.files.items():
            if hashlib.sha256((artifact / name).read_bytes()).hexdigest() != record.sha256:
                return f"{name} differs"
    return ""


def _build_fault(home: Path, expected: Path) -> str:
    artifacts = list((home / "cache" / "cambrian" / "artifacts").glob("[!.]*"))
    return _artifact_fault(home, expected) if len(artifacts) == 1 else f"{len(artifacts)} artefacts"


def _run_fault(home: Path, expected: Path) -> str:
    report = read_report(home / "out")
    if (report["status"], report["num_images"]) != ("ok", _NUM_IMAGES):
        return f"report of status {report['status']} and {report['num_images']} images"
    is_same = read_predictions(home / "out") == read_predictions(expected / "out")
    return "" if is_same else "predictions differ"


def _sweep_fault(home: Path, expected: Path) -> str:
    results = [json.loads(line) for line in (home / "out" / "results.jsonl").read_text().splitlines()]
    measured = sorted(result["cell"]["threads"] for result in results if result["stage"] == "measure")
    statuses = {result["status"] for result in results}
    missing = {path.name for path in (expected / "out").iterdir()} - {path.name for path in (home / "out").iterdir()}
    is_whole = (measured, statuses, missing) == ([1, 2], {"ok"}, set())
    return "" if is_whole else f"results of threads {measured} with {statuses}, without files {missing}"


def _training_fault(home: Path, expected: Path) -> str:
    import numpy as np
    from safetensors.numpy import load_file

    report, metrics = read_report(home / "out"), (home / "out" / "metrics.csv").read_text().splitlines()
    if (report["status"], len(metrics)) != ("ok", 1 + _NUM_EPOCHS):
        return f"report of status {report['status']}, {len(metrics)} lines of metrics"
    found, wanted = (load_file(folder / "out" / "model" / "model.safetensors") for folder in (home, expected))
    is_same = found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)
    return "" if is_same else "weights differ"


_FINDERS: dict[str, Callable[[Path, Path], str]] = {
    "build": _build_fault,
    "run": _run_fault,
    "sweep": _sweep_fault,
    "training": _training_fault,
}
