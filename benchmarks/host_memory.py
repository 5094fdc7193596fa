"""Measures the host memory of 32 virtual devices that each hold all parameters, as a multiple of one copy.

    python benchmarks/host_memory.py

A process that has imported JAX and started its backend loads and launches the artefact of mesh 1x32. The result is its
peak growth, less the temporaries, inputs and outputs of a launch on all devices as analysed by XLA, divided by one copy
of the parameters. It includes machine code and scratch memory of libraries. The first line is with an allocator that
returns freed memory (MALLOC_MMAP_THRESHOLD_), the second with the default one, which keeps several times the
temporaries.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from absl import app

_ROOT = Path(__file__).parent.parent
_CHILD = """
import json, sys
import numpy as np
from cambrian import engine
from cambrian.engine.runtime.memory import bytes_per_launch, peak_host_memory_bytes, resident_bytes
from cambrian.sharding.host import acquire_devices

acquire_devices(32, "cpu")
before = resident_bytes()
executable = engine.load(sys.argv[1])
loaded = resident_bytes()
inputs = np.zeros(executable.input_spec.shape, np.uint8)
for _ in executable.stream([inputs] * 6, threads=2):
    pass
print(json.dumps({
    "parameters": sum(param.nbytes for param in executable.params),
    "loaded": loaded - before,
    "peak": peak_host_memory_bytes() - before,
    "one launch": 32 * bytes_per_launch(executable),
}))
"""


def measure(_: list[str]) -> None:
    command = [sys.executable, _ROOT / "main.py", "--mode", "compile", "--mesh", "1x32"]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    for setting in ({"MALLOC_MMAP_THRESHOLD_": "4194304"}, {}):
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, path],
            check=True,
            capture_output=True,
            text=True,
            cwd=_ROOT,
            env=os.environ | setting,
        )
        measured = json.loads(child.stdout)
        sizes = ", ".join(f"{name} {value / 2**20:.0f} MiB" for name, value in measured.items())
        ratio = (measured["peak"] - measured["one launch"]) / measured["parameters"]
        print(f"{setting or 'default allocator'}: {sizes}; (peak - one launch) / parameters: {ratio:.2f}")


if __name__ == "__main__":
    app.run(measure)
