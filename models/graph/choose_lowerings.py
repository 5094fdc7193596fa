"""Pass: each fused convolution gets the lowering that was measured to be fastest on this machine.

Distinct convolutions are measured one by one, those with the most arithmetic first, until the time for it is spent; the
results are kept in the user's cache folder, and later builds go on from there. A lowering whose results are wrong
counts as infinitely slow. What isn't measured is computed by oneDNN where it can be called, otherwise by XLA.
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from cambrian.models.costs.machine import own_table_path, text_of
from cambrian.models.graph.fused_convolution import FusedConvolution, weights
from cambrian.models.graph.graph import Constant, Graph, Node, rewritten
from cambrian.models.graph.scan import nodes_and_repetitions, rewrite_bodies
from cambrian.models.lowerings import lowerings_for
from cambrian.models.lowerings.onednn import output_pixel, telling_pixels
from cambrian.models.lowerings.onednn_direct import convolution_of
from cambrian.sharding.host import cpu_threads, without_compilation_cache

_LAUNCHES, _SECONDS = 5, 0.05
_SMALL_FLOPS = 2**28
_TINY_FLOPS = 2**20  # of matrix products that take less time than oneDNN to start
_MOST_DRAWN = 1_000_003  # random numbers, which are repeated: a large dense layer has a hundred times as many
_TOLERANCE = 0.1  # of a few pixels; a kernel in a wrong order gives an error above 1
_HOPELESS = 1.5  # times the fastest: then two launches suffice


@dataclasses.dataclass(slots=True)
class MeasuredCosts:
    """Milliseconds of fused convolutions on one device, kept in a file."""

    path: Path
    milliseconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of_machine(cls, platform: str) -> "MeasuredCosts":
        """Reads what was measured on this machine before; lines that can't be read are left out."""
        path = own_table_path(platform)
        costs = cls(path.with_name(f"fused-{path.name}"))
        for line in text_of(costs.path).splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):  # as when the disk was full
                entry = json.loads(line)
                costs.milliseconds[entry["operation"]] = float(entry["ms"])
        return costs

    def get(self, operation: FusedConvolution) -> float | None:
        return self.milliseconds.get(_key(operation))

    def add(self, operation: FusedConvolution, milliseconds: float) -> None:
        self.milliseconds[_key(operation)] = milliseconds
        # Without a cache folder that can be written, the next build measures again.
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"operation": _key(operation), "ms": round(milliseconds, 4)}) + "\n")


def _key(operation: FusedConvolution) -> str:
    return f"{cpu_threads()} threads {dataclasses.astuple(operation)}"


def choose_lowerings(
    graph: Graph, device: jax.Device, costs: MeasuredCosts, seconds: float, in_loop: bool = False
) -> Graph:
    """Chooses the lowering of every fused convolution, and prepares its kernel.

    Args:
      device: where the graph will run.
      costs: what was measured so far; new measurements are added.
      seconds: time that measuring may take.
      in_loop: whether the graph is the body of a loop, in which XLA:CPU computes its own convolutions on one core.
    """
    counts: Counter[FusedConvolution] = Counter()
    for node, repetitions in nodes_and_repetitions(graph):
        if isinstance(node.operation, FusedConvolution):
            counts[node.operation] += repetitions
    if device.platform == "cpu":
        _measure(counts, device, costs, seconds)
    return _with_fastest(graph, device.platform, costs, in_loop)


def _with_fastest(graph: Graph, platform: str, costs: MeasuredCosts, in_loop: bool) -> Graph:
    graph = rewrite_bodies(graph, lambda body: _with_fastest(body, platform, costs, in_loop=True))

    def rewrite(node: Node) -> list[Node] | None:
        if not isinstance(node.operation, FusedConvolution):
            return None
        return [with_lowering(node, fastest(node.operation, platform, costs, in_loop).lowering)]

    return rewritten(graph, rewrite)


def with_lowering(node: Node, lowering: str) -> Node:
    """The node of a fused convolution with a lowering, and its kernel and bias prepared for it."""
    assert isinstance(node.operation, FusedConvolution)
    operation = dataclasses.replace(node.operation, lowering=lowering)
    images, _, _, *residual = node.inputs
    kernel, bias = weights(node)
    prepared = [Constant.of(array) for array in operation.prepare(kernel.array, bias.array)]
    return Node(operation, (images, *prepared, *residual), node.outputs)


def fastest(
    operation: FusedConvolution, platform: str, costs: MeasuredCosts, in_loop: bool = False
) -> FusedConvolution:
    """The operation with the fastest measured lowering, or the one that suits most if none is measured."""
    candidates = _candidates(operation, platform)
    if in_loop and platform == "cpu":
        candidates = [candidate for candidate in candidates if candidate.lowering != "native"] or candidates
    measured = {candidate: ms for candidate in candidates if (ms := costs.get(candidate)) is not None}
    if not measured:
        return candidates[0]
    best = min(measured, key=measured.__getitem__)
    return dataclasses.replace(operation, lowering="native") if measured[best] == np.inf else best


def _candidates(operation: FusedConvolution, platform: str) -> list[FusedConvolution]:
    """The operation with each lowering worth measuring, the most promising first."""
    names = lowerings_for(operation, platform)
    if platform == "cpu" and "matmul" in names and operation.flops < _TINY_FLOPS:
        names = ["matmul"]
    elif "onednn" in names:
        names.remove("onednn")
        names.insert(0, "onednn")
        # XLA:CPU computes convolutions many times more slowly itself, except as a matrix product and small ones.
        native = ["native"] if operation.flops < _SMALL_FLOPS and "matmul" not in names else []
        kept = ("onednn", "matmul", *native, "onednn_winograd_2x2", "onednn_winograd_4x4")
        names = [name for name in names if name in kept]
    return [dataclasses.replace(operation, lowering=name) for name in names]


def _measure(counts: Mapping[FusedConvolution, int], device: jax.Device, costs: MeasuredCosts, seconds: float) -> None:
    end = time.perf_counter() + seconds
    for operation in sorted(counts, key=lambda each: -each.flops * counts[each]):
        candidates = _candidates(operation, device.platform)
        if len(candidates) == 1 or all(costs.get(candidate) is not None for candidate in candidates):
            continue
        best = np.inf
        for candidate in candidates:
            if time.perf_counter() > end:
                return
            milliseconds = measured_ms(candidate, device, best)
            costs.add(candidate, milliseconds)
            best = min(best, milliseconds)


def measured_ms(operation: FusedConvolution, device: jax.Device, fastest_ms: float = np.inf) -> float:
    """Measures the milliseconds of an operation on random operands, which are on the device; inf if it is wrong."""
    random = np.random.default_rng(0)

    def values(shape: Sequence[int], dtype: str, scale: float = 1.0) -> np.ndarray:
        drawn = random.standard_normal(min(int(np.prod(shape)), _MOST_DRAWN), np.float32) * np.float32(scale)
        return np.resize(drawn.astype(dtype), shape)

    kernel, bias = values(operation.kernel_shape, "float32", 0.05), values((operation.out_channels,), "float32")
    images = values(operation.in_shape, operation.dtype)
    residual = [values(operation.out_shape, operation.out_dtype)] * operation.residual
    arrays = jax.device_put([images, *operation.prepare(kernel, bias), *residual], device)
    with without_compilation_cache():
        compiled = jax.jit(lambda *arrays: operation(*arrays)).lower(*arrays).compile()
    launch = functools.partial(compiled, *arrays)
    if not _is_right(np.asarray(launch()[0]), operation, images, kernel, [bias, *residual]):
        return np.inf
    times, start = [], time.perf_counter()
    while len(times) < _LAUNCHES or time.perf_counter() - start < _SECONDS:
        before = time.perf_counter()
        jax.block_until_ready(launch())
        times.append(1e3 * (time.perf_counter() - before))
        if len(times) > 1 and min(times) > _HOPELESS * fastest_ms:
            break
    return min(times)  # other processes only ever slow a launch


def _is_right(
    got: np.ndarray, operation: FusedConvolution, images: np.ndarray, kernel: np.ndarray, operands: Sequence[np.ndarray]
) -> bool:
    """Whether some pixels of the last image are those that NumPy computes."""
    last, exact, seen, convolution = len(images) - 1, [], [], convolution_of(operation)
    bias, *residual = operands
    for row, column in {(0, 0), *telling_pixels(convolution)}:
        added = [bias, *(array[last, row, column].astype(np.float32) for array in residual)]
        exact.append(output_pixel(images[last].astype(np.float32), kernel, convolution, row, column, added))
        seen.append(got[last, row, column].astype(np.float32))
    return bool(np.linalg.norm(np.subtract(seen, exact)) <= _TOLERANCE * (np.linalg.norm(exact) + _TOLERANCE**2))
