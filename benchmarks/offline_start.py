"""Compares a saved executable with tracing and compiling: time from process start to the first logits, as a ratio.

    python benchmarks/offline_start.py

Runs are interleaved. Each is a process on mesh 4x8 with one image per data group; its time is `first_inference_ms` of
the report. Offline execution includes verifying the artefact and running its probe.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of interleaved rounds.")
_MAIN = Path(__file__).parent.parent / "main.py"


def first_inference_ms(execution: str, directory: Path) -> float:
    output_dir = directory / execution
    arguments = ["--mesh", "4x8", "--batch_size", "8", "--num_images", "8", "--data", "synthetic"]
    arguments += ["--execution", execution, "--output_dir", str(output_dir)]
    subprocess.run([sys.executable, _MAIN, *arguments], check=True, capture_output=True)
    return json.loads((output_dir / "report.json").read_text())["first_inference_ms"]


def measure(_: list[str]) -> None:
    times: dict[str, list[float]] = {"offline": [], "online": []}
    with tempfile.TemporaryDirectory() as directory:
        first_inference_ms("offline", Path(directory))  # builds the artefact
        for number in range(_ROUNDS.value):
            for execution, measured in times.items():
                measured.append(first_inference_ms(execution, Path(directory)))
            offline, online = times["offline"][-1], times["online"][-1]
            print(f"round {number}: offline {offline:.0f} ms, online {online:.0f} ms, ratio {offline / online:.3f}")
    offline, online = map(statistics.median, times.values())
    print(f"median: offline {offline:.0f} ms, online {online:.0f} ms, ratio {offline / online:.3f}")


if __name__ == "__main__":
    app.run(measure)
