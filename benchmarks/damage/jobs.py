"""Commands of seconds that the benchmark of faults disturbs, and what they leave."""

import csv
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command import LABELS, ROOT, Command, Outcome, read_predictions, read_report, write_images

if TYPE_CHECKING:
    from cambrian.models.training.checkpoints import Checkpoints

_NUM_IMAGES, _NUM_EPOCHS = 2000, 10
_BATCH_IMAGES = 400
_NETWORK = ("--weights", "small.safetensors", "--image_size", "8", "--precision", "float32", "--mesh", "1x2")
_RUN = (*_NETWORK, "--batch_size", "8", "--data", "synthetic", "--output_dir", "out")
_BATCH = ("--mode", "batch", "--artifact", "artifact", "--data", "pictures", "--output_dir", "out")
_CARDS = ("--cards", "2", "--threads", "4")
_FLAGS = {
    "build": (*_NETWORK, "--batch_size", "8", "--mode", "compile"),
    "run": (*_RUN, "--num_images", str(_NUM_IMAGES)),
    "cards": (*_RUN, "--num_images", str(_NUM_IMAGES), *_CARDS),
    "sweep": (*_RUN, "--num_images", "64", "--threads", "1,2", "--repeats", "1"),
    "training": (*_NETWORK, "--batch_size", "10", "--mode", "train", "--data", "images", "--output_dir", "out"),
    "batch": _BATCH,
    "batch_on_cluster": (*_BATCH, "--ray_address", "auto"),
}
OF_RAY = ("batch", "batch_on_cluster")
KINDS = tuple(kind for kind in _FLAGS if kind not in OF_RAY)  # what doesn't start other programs
# main.py with another default recipe, because no configuration names a network as small as this one.
_TRAINING_SCRIPT = f"""
import dataclasses

from cambrian.commands.cli import cli
from cambrian.models.training.recipe import Recipe

Recipe.__init__.__defaults__ = dataclasses.astuple(Recipe(epochs={_NUM_EPOCHS}, checkpoint_every_s=0.2))
cli()
"""


def prepare(kind: str, folder: Path) -> None:
    """Writes to `folder`/start what a command of this kind needs, and runs it undisturbed in `folder`/expected."""
    (folder / "start").mkdir(parents=True)
    command = Command(folder / "start")
    command.small_flags()  # writes the weights
    write_images(
        command.home / "images",
        [f"{split}/{label}/{index}.png" for split in ("train", "test") for label in LABELS for index in range(2)],
    )
    (command.home / "training.py").write_text(_TRAINING_SCRIPT)
    if kind in OF_RAY:
        write_images(command.home / "pictures", [f"{index:04}.png" for index in range(_BATCH_IMAGES)])
        _succeed("build", command)
        _artifacts(command.home)[0].rename(command.home / "artifact")
    if kind in ("run", "cards", "sweep"):
        _succeed("build", command, *(_CARDS if kind == "cards" else ()))
    _succeed(kind, Command(copied(folder / "start", folder / "expected")))


def _succeed(kind: str, command: Command, *more_flags: str) -> None:
    outcome = run(kind, command, *more_flags)
    if outcome.exit_code:
        raise RuntimeError(outcome.stderr)


def copied(start: Path, home: Path) -> Path:
    return Path(shutil.copytree(start, home, symlinks=True, dirs_exist_ok=True))


def start(kind: str, command: Command, **options: Any) -> subprocess.Popen:
    return command.start(*_FLAGS[kind], script=_script(kind, command), **options)


def run(kind: str, command: Command, *more_flags: str, before: Path | None = None) -> Outcome:
    """Runs a command to its end.

    Args:
      before: script that starts the command in place of its own process, after changing that process's limits.
    """
    script = _script(kind, command)
    return command(*_FLAGS[kind], *more_flags, script=script if before is None else (before, *script))


def _script(kind: str, command: Command) -> tuple[str | Path, ...]:
    if kind in OF_RAY:
        return "-W", "default", ROOT / "main.py"  # Ray's warnings are no errors
    return (command.home / "training.py",) if kind == "training" else (ROOT / "main.py",)


def repeat(kind: str, command: Command, expected: Path, tell: Callable[[str], None]) -> str:
    """Runs a disturbed command again.

    Returns:
      The outcome: `lost` or `crashed`, or nothing if the command had left nothing that passes for finished results, has
      kept what was finished, and has the results of an undisturbed one.
    """
    if fault := find_misleading(kind, command.home, expected):
        tell(f"left {fault}")
        return "lost"
    kept, more = _finished(kind, command.home), ()
    if kind == "sweep" and failed_trials(command.home):
        kept, more = set(), ("--fresh",)  # else failed trials stay
    outcome = run(kind, command, *more)
    if outcome.exit_code:
        tell(f"then exit code {outcome.exit_code}, {outcome.stderr.strip()[-300:]}")
        return "crashed" if outcome.exit_code < 0 or "Traceback" in outcome.stderr else "lost"
    if gone := kept - _finished(kind, command.home):
        tell(f"then without {min(gone):.300}")
        return "lost"
    if fault := find_fault(kind, command.home, expected):
        tell(f"then {fault}")
        return "lost"
    return ""


def find_fault(kind: str, home: Path, expected: Path) -> str:
    """Returns how a finished command's results differ from the expected ones; empty if they don't."""
    try:
        return _FINDERS[kind](home, expected)
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"


def find_misleading(kind: str, home: Path, expected: Path) -> str:
    """Returns what an ended command left that passes for finished results; empty if nothing does."""
    if kind == "build":
        return _artifact_fault(home)
    if kind == "training" and (fault := _checkpoint_fault(home)):
        return fault
    if kind == "sweep" or not (home / "out" / "report.json").exists():
        return ""
    report = read_report(home / "out")
    if report["status"] == "ok":
        return find_fault(kind, home, expected)
    if kind in OF_RAY:
        return "rows differ" if any(row not in _rows(expected) for row in _rows(home)) else ""
    if kind in ("run", "cards") and (home / "out" / "predictions.csv").exists():
        rows = read_predictions(home / "out")
        if rows != read_predictions(expected / "out")[: len(rows)]:
            return "predictions differ"
        if report["status"] != "running" and (report["num_images"] or 0) != len(rows):
            return f"{len(rows)} predictions, {report['num_images']} in the report"
    return ""


def _finished(kind: str, home: Path) -> set[str]:
    """What a command has finished so far and must keep when it is repeated; nothing of a run, which starts over."""
    if kind == "build":
        return {f"artefact {path.name}, inode {path.stat().st_ino}" for path in _artifacts(home)}
    if kind in OF_RAY:
        return {f"{path.name}, inode {path.stat().st_ino}" for path in (home / "out" / "rows").glob("[!.]*")}
    if kind == "sweep":
        return {json.dumps(result) for result in _trials(home)}
    if kind == "training" and (steps := _checkpoints(home).steps()):
        facts = json.loads((home / "out" / "checkpoints" / str(steps[-1]) / "facts.json").read_text())
        return {json.dumps(epoch) for epoch in facts["epochs"]}  # with its images/s, which tell that it was kept
    return set()


def _artifacts(home: Path) -> list[Path]:
    return list((home / "cache" / "cambrian" / "artifacts").glob("[!.]*"))


def _artifact_fault(home: Path) -> str:
    """Every artefact that has appeared is complete."""
    from cambrian.engine.artifact.manifest import read_manifest

    for artifact in _artifacts(home):
        manifest, _ = read_manifest(artifact, None)
        for name, record in manifest.files.items():
            if hashlib.sha256((artifact / name).read_bytes()).hexdigest() != record.sha256:
                return f"{name} differs"
    return ""


def _checkpoints(home: Path) -> "Checkpoints":
    from cambrian.models.training.checkpoints import Checkpoints

    return Checkpoints(home / "out" / "checkpoints")


def _checkpoint_fault(home: Path) -> str:
    """The last two checkpoints that have appeared are complete; older ones may be half removed."""
    checkpoints = _checkpoints(home)
    return next(filter(None, map(checkpoints.damage, checkpoints.steps()[-2:])), "")


def _build_fault(home: Path, expected: Path) -> str:
    artifacts = _artifacts(home)
    return _artifact_fault(home) if len(artifacts) == 1 else f"{len(artifacts)} artefacts"


def _run_fault(home: Path, expected: Path) -> str:
    report = read_report(home / "out")
    if (report["status"], report["num_images"]) != ("ok", _NUM_IMAGES):
        return f"report of status {report['status']} and {report['num_images']} images"
    is_same = read_predictions(home / "out") == read_predictions(expected / "out")
    return "" if is_same else "predictions differ"


def failed_trials(home: Path) -> list[str]:
    """Returns why trials of a sweep failed."""
    return [result["reason"] for result in _trials(home) if result["status"] != "ok"]


def _trials(home: Path) -> list[dict[str, Any]]:
    path = home / "out" / "results.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # the last line may be incomplete


def _sweep_fault(home: Path, expected: Path) -> str:
    results = _trials(home)
    measured = sorted(result["cell"]["threads"] for result in results if result["stage"] == "measure")
    statuses = {result["status"] for result in results}
    missing = {path.name for path in (expected / "out").iterdir()} - {path.name for path in (home / "out").iterdir()}
    is_whole = (measured, statuses, missing) == ([1, 2], {"ok"}, set())
    return "" if is_whole else f"results of threads {measured} with {statuses}, without files {missing}"


def _training_fault(home: Path, expected: Path) -> str:
    import numpy as np
    from safetensors.numpy import load_file

    if (status := read_report(home / "out")["status"]) != "ok":
        return f"report of status {status}"
    if _metrics(home) != _metrics(expected):
        return "metrics differ"
    found, wanted = (load_file(folder / "out" / "model" / "model.safetensors") for folder in (home, expected))
    is_same = found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)
    return _checkpoint_fault(home) if is_same else "weights differ"


def _batch_fault(home: Path, expected: Path) -> str:
    report = read_report(home / "out")
    if (report["status"], report["num_images"]) != ("ok", _BATCH_IMAGES):
        return f"report of status {report['status']} and {report['num_images']} images"
    return "" if _rows(home) == _rows(expected) else "rows differ"


def _rows(home: Path) -> list[dict[str, Any]]:
    from pyarrow.parquet import read_table

    files = (home / "out" / "rows").glob("[!.]*")
    return sorted((row for file in files for row in read_table(file).to_pylist()), key=lambda row: row["path"])


def _metrics(home: Path) -> list[dict[str, str]]:
    with (home / "out" / "metrics.csv").open(newline="") as file:
        return [row | {"images_per_second": ""} for row in csv.DictReader(file)]


_FINDERS: dict[str, Callable[[Path, Path], str]] = {
    "build": _build_fault,
    "run": _run_fault,
    "cards": _run_fault,
    "sweep": _sweep_fault,
    "training": _training_fault,
    **dict.fromkeys(OF_RAY, _batch_fault),
}
