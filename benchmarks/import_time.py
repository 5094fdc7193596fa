"""Compares the time to import the packages with that of `import jax`, as a ratio, interleaved.

    python benchmarks/import_time.py

Each import runs in its own process; the total user and system time of the processes is compared.
"""

import resource
import statistics
import subprocess
import sys
from pathlib import Path

from absl import app, flags

_ROUNDS = flags.DEFINE_integer("rounds", 10, "Number of interleaved rounds.")
_ROOT = Path(__file__).parent.parent


def cpu_seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=_ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(_: list[str]) -> None:
    codes = {"jax": "import jax", "packages": "from cambrian import engine, models, sharding"}
    times: dict[str, list[float]] = {name: [] for name in codes}
    for code in codes.values():
        cpu_seconds(code)  # fills the file and bytecode caches
    for _round in range(_ROUNDS.value):
        for name, code in codes.items():
            times[name].append(cpu_seconds(code))
    jax, packages = map(statistics.median, times.values())
    print(
        f"median: import jax {1e3 * jax:.0f} ms, with the packages {1e3 * packages:.0f} ms, ratio {packages / jax:.3f}"
    )


if __name__ == "__main__":
    app.run(measure)
