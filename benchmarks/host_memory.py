"""Host memory of 32 replicated virtual devices: resident memory that loading and running takes, as a ratio.

    python benchmarks/host_memory.py

The artefact of mesh 1x32, whose parameters every device holds whole, is loaded and launched in a process that has
imported JAX and started its backend before. What the process grows by is compared with one copy of the parameters plus
the temporaries, inputs and outputs that XLA states for the launches in flight.
"""

import json
import subprocess
import sys
from pathlib import Path

from absl import app

_ROOT = Path(__file__).parent.parent
_CHILD = """
import json, sys
import jax, numpy as np
from sharding import acquire_devices
from engine.artifact import load
from engine.memory import peak_host_memory_bytes, resident_bytes
from pathlib import Path
acquire_devices(32, "cpu")
before = resident_bytes()
executable = load(Path(sys.argv[1]))
inputs = np.zeros(executable.input_spec.shape, np.uint8)
for _ in executable.stream([inputs] * 8, threads=2):
    pass
analysis = executable.analysis
print(json.dumps({
    "grown": peak_host_memory_bytes() - before,
    "parameters": sum(param.nbytes for param in executable.params),
    "temporaries": 2 * 32 * (analysis.temporary_bytes + analysis.output_bytes),
}))
"""


def measure(_: list[str]) -> None:
    command = [sys.executable, _ROOT / "main.py", "--mode", "compile", "--mesh", "1x32"]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    child = subprocess.run([sys.executable, "-c", _CHILD, path], check=True, capture_output=True, text=True, cwd=_ROOT)
    measured = json.loads(child.stdout)
    mebibytes = {name: value / 2**20 for name, value in measured.items()}
    allowed = mebibytes["parameters"] * 1.3 + mebibytes["temporaries"]
    print(", ".join(f"{name} {value:.0f} MiB" for name, value in mebibytes.items()))
    beyond = (mebibytes["grown"] - mebibytes["temporaries"]) / mebibytes["parameters"]
    print(f"(grown - temporaries) / parameters: {beyond:.2f}; 1.3 × parameters + temporaries: {allowed:.0f} MiB")


if __name__ == "__main__":
    app.run(measure)
