"""The process of a side in one mode and precision, which builds, checks and times on commands from standard input.

    python -m benchmarks.sides.worker SIDE MODE PRECISION STEM FOLDER

FOLDER holds images.npy (N, H, W, C) uint8 and reference.npy, their logits. Each line is a command, answered by a line
of JSON:

    build BATCH               {"relative_error": …}     against the reference
    throughput BATCH SECONDS  {"images_per_second": …}  after a warm-up, over about SECONDS
    latency BATCH SECONDS     {"latency_ms": …}         median of single launches, over about SECONDS

The answer to a command that fails is {"failure": …}. Between commands the process blocks on the pipe; it ends at the
end of its input.
"""

import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.sides import OURS, SIDES, ours
from benchmarks.sides.problem import Problem, Runner, resnet101
from cambrian.engine.runtime.parity import compare


class Server:
    """Answers the commands; keeps a runner for each batch size."""

    def __init__(self, make_runner: Callable[[int], Runner], reference: np.ndarray):
        self._make_runner = make_runner
        self._reference = reference
        self._runners: dict[int, Runner] = {}

    def build(self, batch: int) -> dict[str, float]:
        runner = self._runners[batch] = self._make_runner(batch)
        return {"relative_error": compare(runner.run(1), self._reference[:batch]).max_relative_error}

    def throughput(self, batch: int, seconds: float) -> dict[str, float]:
        runner = self._runners[batch]
        warmup = _seconds(runner, runner.in_flight)
        # A multiple of the launches in flight, so that none runs alone at the end.
        launches = runner.in_flight * max(1, round(seconds / warmup))
        return {"images_per_second": launches * batch / _seconds(runner, launches)}

    def latency(self, batch: int, seconds: float) -> dict[str, float]:
        runner = self._runners[batch]
        launches = max(3, round(seconds / _seconds(runner, 1)))
        return {"latency_ms": 1e3 * statistics.median(_seconds(runner, 1) for _ in range(launches))}


def _seconds(runner: Runner, launches: int) -> float:
    start = time.perf_counter()
    runner.run(launches)
    return time.perf_counter() - start


def main(side: str, mode: str, precision: str, stem: str, folder: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries may print on standard output, which must not look like an answer
    if side == OURS:
        ours.acquire(mode, precision)  # before JAX starts, to make the problem
    problem: Problem = resnet101(stem, np.load(Path(folder) / "images.npy"))

    def make_runner(batch: int) -> Runner:
        module = importlib.import_module(f"benchmarks.sides.{SIDES[side].module}")
        return module.make_runner(problem, batch, precision, mode)

    server = Server(make_runner, np.load(Path(folder) / "reference.npy"))
    for line in sys.stdin:
        command, batch, *seconds = line.split()
        try:
            answer = getattr(server, command)(int(batch), *map(float, seconds))
        except Exception as error:  # any error of a library: the other sides continue
            answer = {"failure": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
