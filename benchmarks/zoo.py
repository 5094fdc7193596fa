"""Compares Cambrian with stock JAX and OpenVINO on networks that nobody here wrote.

    pip install -e '.[zoo]'
    python benchmarks/zoo.py --networks MobileNetV2,EfficientNetB0 --precision float32,bfloat16 --output zoo.json

Stock is the network's function under `jax.jit`, in float32; OpenVINO has timm's network of the same name, in a process
of its own. The better of one and two launching threads counts, and of OpenVINO's latency and throughput mode. Sides
take turns within a round, each after a warm-up; figures are medians over the rounds. Both processes ask for huge pages;
ours keeps freed memory, too (`cambrian.host.permit("malloc")`).
"""

import functools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import numpy as np
from absl import app, flags

import cambrian
from benchmarks.machine import circumstances
from benchmarks.networks import openvino_rates
from benchmarks.networks.make_network import make_network, names
from benchmarks.output import make_table, print_table
from cambrian.sharding import time_launches

_THREADS = (1, 2)  # host threads that launch: the better counts, as of OpenVINO's modes
SIX = ["ResNet50", "MobileNetV2", "EfficientNetB0", "ConvNeXtTiny", "DenseNet121", "VGG16"]
_NETWORKS = flags.DEFINE_list("networks", SIX, "Names of networks, or all.")
_PRECISION = flags.DEFINE_list("precision", ["float32", "bfloat16"], "float32, bfloat16, or both.")
_BATCH = flags.DEFINE_integer("batch", 4, "Samples of a launch.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Seconds of a side in a round.", lower_bound=0.0)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file of the rows; it grows with each network.")


def measure(name: str, precision: str, batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Builds a network and returns its row. Runs in a process of its own."""
    cambrian.host.permit("malloc")
    function, params, spec = make_network(name)
    start = time.perf_counter()
    executable = cambrian.compile(function, params, spec, batch_size=batch, precision=precision, name=name)
    build_ms = 1e3 * (time.perf_counter() - start)
    random = np.random.default_rng(0)
    shape = (batch, *spec.shape)
    inputs = random.integers(0, 100, shape) if spec.dtype == np.int32 else random.standard_normal(shape)
    inputs = jax.device_put(inputs.astype(spec.dtype))
    params = jax.device_put(params)
    stock = jax.jit(function).lower(params, inputs).compile()
    expected, got = (np.asarray(outputs, np.float64) for outputs in (stock(params, inputs), executable.launch(inputs)))

    def rate(launch: Callable[[], jax.Array], threads: int) -> Callable[[float], float]:
        def run(seconds: float) -> float:
            start = time.perf_counter()
            launches = len(time_launches(launch, threads, least=1, seconds=seconds))
            return batch * launches / (time.perf_counter() - start)

        return run

    other = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))  # its threads would disturb ours
    modes = other.submit(openvino_rates.prepare, name, batch, spec.shape[0], precision).result()
    sides = {
        "ours": [rate(lambda: executable.launch(inputs), threads) for threads in _THREADS],
        "stock": [rate(lambda: stock(params, inputs), threads) for threads in _THREADS],
        "openvino": [functools.partial(_in_process(other, openvino_rates.rate), mode) for mode in range(modes)],
    }
    rates = {side: [[] for _ in runs] for side, runs in sides.items()}
    for _ in range(rounds):
        for side, runs in sides.items():
            for run, taken in zip(runs, rates[side], strict=True):
                run(seconds)  # a virtual machine may have given idle memory back
                taken.append(run(seconds))
    other.shutdown()
    best = {side: max(map(statistics.median, taken), default=None) for side, taken in rates.items()}
    taken = sum(layer["lowering"] != "xla" for layer in executable.plan.values())
    return {
        "network": name,
        "precision": precision,
        "layers": len(executable.plan),
        "taken": taken,
        "relative_error": float(np.linalg.norm(got - expected) / np.linalg.norm(expected)),
        "top1_kept": float((got.argmax(-1) == expected.argmax(-1)).mean()),
        "images_per_second": best["ours"],
        "stock_images_per_second": best["stock"],
        "openvino_images_per_second": best["openvino"],
        "build_ms": build_ms,
        "notes": list(executable.notes),
    }


def _in_process(pool: ProcessPoolExecutor, function: Callable[..., float]) -> Callable[..., float]:
    return lambda *arguments: pool.submit(function, *arguments).result()


def main(_: list[str]) -> None:
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # read at the start of a process: of both sides here
    chosen = names() if _NETWORKS.value == ["all"] else _NETWORKS.value
    report: dict[str, Any] = {**circumstances(["keras", "dm-haiku", "openvino", "timm"]), "rows": []}
    columns = ("layers", "taken", "error", "images/s", "stock", "OpenVINO", "÷ stock", "÷ OpenVINO", "build s")
    table = make_table(f"batch {_BATCH.value}, images/s", ("network", "precision"), columns)
    for name in chosen:
        for precision in _PRECISION.value:
            arguments = (name, precision, _BATCH.value, _ROUNDS.value, _SECONDS.value)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                row = process.submit(measure, *arguments).result()
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
