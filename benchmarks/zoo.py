"""Compares Cambrian with stock JAX and OpenVINO on networks that nobody here wrote.

    pip install -e '.[zoo]'
    python benchmarks/zoo.py --networks MobileNetV2,EfficientNetB0 --precision float32,bfloat16 --output zoo.json

Stock is the network's function under `jax.jit`, in float32; OpenVINO has timm's network of the same name. Each side has
a process of its own, which asks for huge pages; ours has `cambrian.host.permit("malloc", "cpu_latency")`, too. The
best mode counts: of stock, one or two launching threads; of ours, these, two launches side by side where a run has them
so, or two processes with half of the cores each, as `--cards 2` runs; of OpenVINO, latency or throughput. Sides take
turns within a round, each after a warm-up; figures are medians over the rounds.
"""

import contextlib
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from absl import app, flags

from benchmarks.machine import circumstances
from benchmarks.networks import jax_sides, openvino_rates
from benchmarks.networks.make_network import names
from benchmarks.tables import make_table, print_table
from cambrian.sharding.host import launches_at_once

_WARM_UP_S = 2.0  # a virtual machine takes that long to give a process that was idle its full speed back
SIX = ["ResNet50", "MobileNetV2", "EfficientNetB0", "ConvNeXtTiny", "DenseNet121", "VGG16"]
_NETWORKS = flags.DEFINE_list("networks", SIX, "Names of networks, or all.")
_PRECISION = flags.DEFINE_list("precision", ["float32", "bfloat16"], "float32, bfloat16, or both.")
_BATCH = flags.DEFINE_integer("batch", 4, "Samples of a launch.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Seconds of a side in a round.", lower_bound=0.0)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file of the rows; it grows with each network.")


def measure(name: str, precision: str, batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Builds a network on every side, each in a process of its own, and returns its row."""
    with contextlib.ExitStack() as stack:

        def start(module: ModuleType, cores: Sequence[int] = ()) -> Callable[..., Future]:
            context = multiprocessing.get_context("spawn")
            process = stack.enter_context(ProcessPoolExecutor(1, context, _run_on, (cores,)))
            return lambda function, *arguments: process.submit(getattr(module, function), *arguments)

        ours, stock, openvino = start(jax_sides), start(jax_sides), start(openvino_rates)
        facts = ours("prepare_ours", name, batch, precision).result()
        expected, got = stock("prepare_stock", name, batch).result(), facts.pop("outputs")
        halves = [start(jax_sides, half) for half in _halves()]
        for half in halves:
            half("prepare_ours", name, batch, precision).result()
        modes = openvino("prepare", name, batch, facts.pop("size"), precision).result()
        of_jax = range(jax_sides.num_modes())
        sides = {
            "": [[(ours, mode)] for mode in of_jax],
            "stock_": [[(stock, mode)] for mode in of_jax],
            "openvino_": [[(openvino, mode)] for mode in range(modes)],
        }
        if (at_once := launches_at_once(1, 2, precision)) > 1:
            beside = start(jax_sides)
            beside("prepare_ours", name, batch, precision, at_once).result()
            sides[""].append([(beside, 1)])
        if halves:
            sides[""].append([(half, 0) for half in halves])
        rates = {side: [[] for _ in ways] for side, ways in sides.items()}
        for _ in range(rounds):
            for side, ways in sides.items():
                for processes, taken in zip(ways, rates[side], strict=True):
                    _rate(processes, _WARM_UP_S)
                    taken.append(_rate(processes, seconds))
    best = {side: max(map(statistics.median, taken), default=None) for side, taken in rates.items()}
    return {
        "network": name,
        "precision": precision,
        "relative_error": float(np.linalg.norm(got - expected) / np.linalg.norm(expected)),
        "top1_kept": float((got.argmax(-1) == expected.argmax(-1)).mean()),
        **{f"{side}images_per_second": figure for side, figure in best.items()},
        **facts,
    }


def _rate(processes: Sequence[tuple[Callable[..., Future], int]], seconds: float) -> float:
    """Images/s of processes, each in a mode, at the same time."""
    return sum(each.result() for each in [run("rate", mode, seconds) for run, mode in processes])


def _halves() -> list[list[int]]:
    """The cores in two halves; none for a single core, or where processes can't be bound to cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    middle = len(cores) // 2
    return [cores[:middle], cores[middle : 2 * middle]] if middle else []


def _run_on(cores: Sequence[int]) -> None:
    if cores:
        os.sched_setaffinity(0, cores)


def main(_: list[str]) -> None:
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # read at the start of a process: of both sides here
    chosen = names() if _NETWORKS.value == ["all"] else _NETWORKS.value
    report: dict[str, Any] = {**circumstances(["keras", "dm-haiku", "openvino", "timm"]), "rows": []}
    columns = ("layers", "taken", "error", "images/s", "stock", "OpenVINO", "÷ stock", "÷ OpenVINO", "build s")
    table = make_table(f"batch {_BATCH.value}, images/s", ("network", "precision"), columns)
    for name in chosen:
        for precision in _PRECISION.value:
            arguments = (name, precision, _BATCH.value, _ROUNDS.value, _SECONDS.value)
            row = measure(*arguments)
            report["rows"].append(row)
            if _OUTPUT.value:
                Path(_OUTPUT.value).write_text(json.dumps(report, indent=1))
            ours, stock, other = (row[f"{side}images_per_second"] for side in ("", "stock_", "openvino_"))
            table.add_row(
                name,
                precision,
                str(row["layers"]),
                str(row["taken"]),
                f"{row['relative_error']:.1e}",
                f"{ours:.1f}",
                f"{stock:.1f}",
                f"{other:.1f}" if other else "",
                f"{ours / stock:.2f}",
                f"{ours / other:.2f}" if other else "",
                f"{row['build_ms'] / 1e3:.1f}",
            )
            print(json.dumps(row), flush=True)
    print_table(table)


if __name__ == "__main__":
    app.run(main)
