"""Profiles a single image: the layers of ResNet101 in Cambrian and in OpenVINO, summed by kind of convolution.

    pip install -e '.[bench]'
    python benchmarks/single_image.py --stem cifar

Our layers are measured one by one, each in a chain of a few copies with weights outside the caches; OpenVINO reports
the time of each node within the network. The last rows are the whole launches, measured in turns, ours including the
transfer of the image and of the logits, and their differences to the sums of the layers. Cores are kept awake for both,
where permitted.
"""

import collections
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import numpy as np
import openvino as ov  # pyright: ignore[reportMissingImports]
from absl import app, flags, logging

from benchmarks.machine import circumstances
from benchmarks.sides import ours
from benchmarks.sides.onnx_graph import onnx_model
from benchmarks.sides.problem import STEMS, Problem, resnet101
from benchmarks.tables import make_table, print_table
from cambrian import models
from cambrian.commands.model import default_model
from cambrian.models.costs.layer_case import case_of
from cambrian.models.costs.measure import measure_cases
from cambrian.sharding import Kind, LayerSpec, MeshShape, make_mesh
from cambrian.sharding.host import acquire_devices, host, keep_freed_memory, low_cpu_latency

_STEM = flags.DEFINE_enum("stem", "cifar", STEMS, "Stem of the ResNet.")
_SIZE = flags.DEFINE_integer("size", 0, "Height and width of the image in pixels; 0: that of the stem's preset.")
_LAUNCHES = flags.DEFINE_integer("launches", 60, "Launches of each side, in turns.", lower_bound=1)
_UNSHARDED = MeshShape(1, 1)
Seconds = dict[str, float]  # layer → seconds


def measure(_: list[str]) -> None:
    host.permit("cpu_latency", "malloc")
    keep_freed_memory()
    size = _SIZE.value or default_model(_STEM.value).preprocessing.size[0]
    problem = resnet101(_STEM.value, np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8))
    with low_cpu_latency("cpu"):
        for precision in ("float32", "bfloat16"):
            title = f"{_STEM.value} stem, {size}×{size}, {precision}, {circumstances()['cpu']}"
            show(title, problem, *in_turns(problem, precision), own_layers(problem, precision))


def in_turns(problem: Problem, precision: str) -> tuple[float, float, Seconds]:
    """Returns the median seconds of a launch of ours and of OpenVINO, and OpenVINO's mean seconds of each layer."""
    run = ours.make_runner(problem, 1, precision, "1x1 call").run
    model = ov.Core().read_model(onnx_model(problem.network, problem.params, 1).SerializeToString())
    element = {"float32": "f32", "bfloat16": "bf16"}[precision]
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": element}
    plain, profiled = (
        ov.Core().compile_model(model, "CPU", hints | {"PERF_COUNT": count}).create_infer_request()
        for count in ("NO", "YES")
    )
    image = np.ascontiguousarray(problem.normalised(1).transpose(0, 3, 1, 2))
    launches, others, layers = [], [], collections.defaultdict(list)
    for _ in range(_LAUNCHES.value):
        launches.append(seconds(lambda: run(1)))
        others.append(seconds(lambda: plain.infer({0: image})))
        profiled.infer({0: image})
        for node in profiled.get_profiling_info():
            layers[re.sub(r"\.\d+$", "", node.node_name.split("/")[0])].append(node.real_time.total_seconds())
    number = len(launches)
    return statistics.median(launches), statistics.median(others), {k: sum(v) / number for k, v in layers.items()}


def own_layers(problem: Problem, precision: str) -> Seconds:
    devices, _ = acquire_devices(1, "cpu")
    mesh = make_mesh(_UNSHARDED, devices)
    plan = models.make_plan(problem.network, _UNSHARDED, 1, "cpu", precision)
    cases = {
        layer.name: case_of(layer, plan[layer.name].partition, plan[layer.name].lowering, 1, precision, _UNSHARDED)
        for layer in problem.network
    }
    different = list(dict.fromkeys(cases.values()))  # most layers are equal
    times, _ = measure_cases(different, mesh)
    milliseconds = dict(zip(different, times, strict=True))
    return {name: milliseconds[case] / 1e3 for name, case in cases.items()}


def show(title: str, problem: Problem, launch: float, other: float, theirs: Seconds, own: Seconds) -> None:
    groups: dict[str, list[LayerSpec]] = collections.defaultdict(list)
    for layer in problem.network:
        is_convolution = layer.kind == Kind.CONV
        groups[f"{layer.kernel}×{layer.kernel}, {layer.in_shape[0]} rows" if is_convolution else "rest"].append(layer)
    table = make_table(f"ResNet101, {title}", ("convolutions",), ("layers", "MFLOP", "ours ms", "OpenVINO ms", "ratio"))

    def row(name: str, number: int | str, flops: float | str, a: float, b: float) -> None:
        table.add_row(name, f"{number}", f"{flops}", f"{1e3 * a:.2f}", f"{1e3 * b:.2f}", f"{b / a:.2f}")

    for name, layers in groups.items():
        flops = sum(layer.flops for layer in layers) / 1e6
        ours_theirs = (sum(times.get(layer.name, 0.0) for layer in layers) for times in (own, theirs))
        row(name, len(layers), f"{flops:.0f}", *ours_theirs)
    row("sum", len(problem.network), "", sum(own.values()), sum(theirs.values()))
    row("whole launch", "", "", launch, other)
    row("not in the sum", "", "", launch - sum(own.values()), other - sum(theirs.values()))
    print_table(table)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(measure)
