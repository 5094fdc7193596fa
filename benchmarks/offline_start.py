"""Compares a start from an artefact with tracing and compiling: time from process start to the first logits, as ratios.

    python benchmarks/offline_start.py --mesh 1x1,4x8

Each run is a process with the default precision and batch size, or `--batch_size`, on `--num_images` packaged pictures;
its time is `first_inference_ms` of the report. Runs are interleaved. The first ones, which aren't counted, build the
artefact and note that this machine has passed its probe. Offline times include verifying the artefact, compiling what
can't be saved, and the probe's part of the first launch, whose results are held back until it has passed.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

_MESH = flags.DEFINE_list("mesh", ["1x1", "4x8"], "Meshes.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "Images of a launch; 0: the default of main.py.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 240, "Images of a run.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of interleaved rounds.", lower_bound=1)
_MAIN = Path(__file__).parent.parent / "main.py"
_EXECUTIONS = ("offline", "online")


def run(mesh: str, execution: str, directory: Path) -> dict:
    output_dir = directory / f"{mesh} {execution}"
    arguments = ["--mesh", mesh, "--batch_size", str(_BATCH_SIZE.value), "--num_images", str(_NUM_IMAGES.value)]
    arguments += ["--data", "cifar10_sample", "--execution", execution, "--output_dir", str(output_dir)]
    arguments += ["--artifact_dir", str(directory / "artifacts")]
    subprocess.run([sys.executable, _MAIN, *arguments], check=True, capture_output=True)
    return json.loads((output_dir / "report.json").read_text())


def measure(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for mesh in _MESH.value:
            first = run(mesh, "offline", Path(directory))
            print(
                f"{mesh}, batch {first['batch_size']}, {first['precision']}, {first['executable']}: "
                f"built in {first['build_ms']:.0f} ms"
            )
            times: dict[str, list[float]] = {execution: [] for execution in _EXECUTIONS}
            for number in range(_ROUNDS.value):
                reports = {execution: run(mesh, execution, Path(directory)) for execution in _EXECUTIONS}
                for execution, report in reports.items():
                    times[execution].append(report["first_inference_ms"])
                launch = reports["offline"]["execute_ms"] / -(-_NUM_IMAGES.value // first["batch_size"])
                print(f"round {number}: {_words(times, -1)}, of which {launch:.0f} ms are a launch", flush=True)
            medians = {execution: [statistics.median(measured)] for execution, measured in times.items()}
            print(f"median: {_words(medians, 0)}")


def _words(times: dict[str, list[float]], index: int) -> str:
    offline, online = (times[execution][index] for execution in _EXECUTIONS)
    return f"offline {offline:.0f} ms, online {online:.0f} ms, ratio {offline / online:.3f}"


if __name__ == "__main__":
    app.run(measure)
