"""Post-training quantisation of a graph: calibrated, and kept within a budget of accuracy by layers that stay float32.

The rule of calibration, and which layers stay in float32, are chosen by what they do to the network's outputs for the
calibration inputs.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cambrian.models.graph.calibrate import METHODS, evaluator, largest_of_channels, observe
from cambrian.models.graph.equalize import equalize, without_bounds
from cambrian.models.graph.fused_convolution import FusedConvolution, layer_name
from cambrian.models.graph.graph import Constant, Graph, Node, Value, rewritten
from cambrian.models.graph.quantize import kernel_scale, quantizable, quantize
from cambrian.models.graph.read_layers import read_layers
from cambrian.models.lowerings import Scale
from cambrian.sharding import Network, UsageError

LEAST_INPUTS = 16
_FEW_INPUTS = 64  # suffice for the ranges of channels, and to compare rules
# At least this relative error of the outputs against the same integers is tolerated.
_LEAST_TOLERANCE = 1e-2


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What a network is quantised by.

    Attributes:
      inputs: (M, …) inputs of the network, at least LEAST_INPUTS, not all equal.
      source: where they come from, for people.
      labels: (M,) the right classes; None to take those of the float32 network.
      max_top1_drop: largest loss of top-1 on the inputs, in percentage points, of networks with outputs (N, classes).

    Raises:
      UsageError: if there are too few inputs, or all are equal.
    """

    inputs: np.ndarray = dataclasses.field(repr=False)
    source: str
    labels: np.ndarray | None = dataclasses.field(default=None, repr=False)
    max_top1_drop: float = 0.5

    def __post_init__(self):
        if len(self.inputs) < LEAST_INPUTS:
            raise UsageError(
                f"int8 needs at least {LEAST_INPUTS} calibration images, got {len(self.inputs)}: {self.source}"
            )
        if (self.inputs == self.inputs[:1]).all():
            raise UsageError(f"int8 needs calibration images that differ, got equal ones: {self.source}")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A quantised graph.

    Attributes:
      graph: computes integers exactly, in float32 until lowerings are chosen.
      facts: JSON-compatible: calibration, loss of accuracy, scales.
      tolerance: largest relative error of outputs against the same integers on one device.
      notes: which layers stay in float32 for accuracy.
    """

    graph: Graph
    facts: dict[str, Any]
    tolerance: float
    notes: tuple[str, ...] = ()

    def layers(self) -> Network:
        """The layers of a graph that consists of layers."""
        return read_layers(self.graph).layers

    def reference(self, inputs: np.ndarray) -> np.ndarray:
        """Computes the outputs (M, …) for inputs (M, …) on one device, its integers in float32."""
        evaluate = evaluator(self.graph)
        batches = _batches(inputs, self.graph.inputs[0].shape)
        return np.concatenate([np.asarray(evaluate(batch)[0]) for batch in batches])[: len(inputs)]


def quantized(graph: Graph, calibration: Calibration) -> Quantized:
    """Quantises a float32 graph with one input (N, …) and one output (N, …), as `optimized` returns it.

    Raises:
      UsageError: if integers can compute nothing of the graph, or lose more than the budget whatever stays in float32.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UsageError("int8 needs a function of one array that returns one array, got more of them")
    if not quantizable(graph):
        raise UsageError(
            "int8 computes convolutions and dense layers but the last, those with padding only if they read the output "
            "of a ReLU or are the first: the network has none of them"
        )
    batches, count = _batches(calibration.inputs, graph.inputs[0].shape), len(calibration.inputs)
    few = batches[: -(-_FEW_INPUTS // len(batches[0]))]
    unbounded, candidates = without_bounds(graph), []
    for each in [graph] if unbounded.nodes == graph.nodes else [graph, unbounded]:
        balanced = equalize(each, largest_of_channels(_by_onednn(each), few))
        nodes = quantizable(balanced)
        candidates.append((balanced, nodes, *observe(_by_onednn(balanced), nodes, batches)))
    expected = candidates[0][2][:count].astype(np.float64)
    is_classifier = expected.ndim == 2
    labels = expected.argmax(axis=1) if calibration.labels is None and is_classifier else calibration.labels

    def error_of(outputs: np.ndarray) -> float:
        exact = expected[: len(outputs)]
        return float(np.linalg.norm(outputs - exact) / np.linalg.norm(exact))

    def attempt(kept: Sequence[Node] = ()) -> _Attempt:
        made = quantize(graph, scales, {*nodes}.difference(kept))
        outputs = _outputs(_by_onednn(made), batches, count)
        error = error_of(outputs)
        if not is_classifier:
            return _Attempt(made, error, 0.0, None)
        drop = _top1(expected, labels) - _top1(outputs, labels)
        return _Attempt(made, error, drop, _top1(outputs, expected.argmax(axis=1)) / 100)

    ways = []
    for (graph, nodes, _, observed), method in itertools.product(candidates, METHODS):
        scales = {value: values.scale(method) for value, values in observed.items()}
        outputs = _outputs(_by_onednn(quantize(graph, scales, {*nodes})), few, count)
        ways.append((error_of(outputs), method, graph, nodes, scales))
    _, method, graph, nodes, scales = min(ways, key=lambda way: way[0])
    kept: list[Node] = []
    best = attempt()
    if best.top1_drop > calibration.max_top1_drop:
        worst_first = _worst_first(graph, nodes, scales, batches[0])
        kept = _fewest(worst_first, lambda kept: attempt(kept).top1_drop <= calibration.max_top1_drop)
        best = attempt(kept)
    facts = {
        "calibrated_on": calibration.source,
        "num_images": count,
        "method": method,
        "relative_error": best.error,
        "top1_agreement": best.top1_agreement,
        "top1_drop": best.top1_drop,
        "max_top1_drop": calibration.max_top1_drop,
        "labels": "the float32 network's" if calibration.labels is None else "the images' own",
        "float32_layers": [layer_name(node) for node in kept],
        "scales": {
            layer_name(node): {"input": scales[node.inputs[0]].scale, "kernel": kernel_scale(node)}
            for node in nodes
            if node not in kept
        },
    }
    note = (
        f"{len(kept)} of {len(nodes)} layers stay in float32, to lose at most {calibration.max_top1_drop:g} points of "
        f"top-1: {', '.join(map(layer_name, kept[:3]))}{', …' if len(kept) > 3 else ''}"
    )
    # A float32 value between two integers may be rounded to the other one by another partition; all that follows then
    # differs, but not by more than rounding itself costs.
    tolerance = max(_LEAST_TOLERANCE, 2 * best.error)
    return Quantized(best.graph, facts, tolerance, (note,) if kept else ())


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Attempt:
    """A quantised graph, the relative error of its outputs, and its loss of top-1 in points."""

    graph: Graph
    error: float
    top1_drop: float
    top1_agreement: float | None


def _fewest(worst_first: Sequence[Node], suffices: Callable[[Sequence[Node]], bool]) -> list[Node]:
    """The shortest start of a sequence that suffices, by bisection."""
    too_few, enough = 0, len(worst_first)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if suffices(worst_first[:middle]) else (middle, enough)
    if enough == len(worst_first):
        raise UsageError("int8 loses more top-1 than max_top1_drop allows, whatever layers stay in float32")
    return list(worst_first[:enough])


def _worst_first(graph: Graph, nodes: Sequence[Node], scales: Mapping[Value, Scale], batch: np.ndarray) -> list[Node]:
    """`nodes` in the order of the relative error that each alone makes on float32 operands."""
    added, pairs = [], []
    for node in nodes:
        operands = tuple(value for value in node.inputs if not isinstance(value, Constant))
        alone = quantize(Graph(operands, (node,), node.outputs), scales, {node})
        added += alone.nodes
        pairs.append((node.output, *alone.outputs))
    both = Graph(graph.inputs, (*graph.nodes, *added), tuple(value for pair in pairs for value in pair))

    def errors(values: Sequence[jax.Array]) -> list[jax.Array]:
        norm = jnp.linalg.norm
        return [norm(got - exact) / norm(exact) for exact, got in zip(values[::2], values[1::2], strict=True)]

    by_node = dict(zip(nodes, evaluator(_by_onednn(both), errors)(batch), strict=True))
    return sorted(nodes, key=lambda node: -float(by_node[node]))


def _batches(inputs: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Cuts inputs into batches of the graph's size, the last one filled up by a repetition."""
    repeated = inputs[np.arange(-(-len(inputs) // shape[0]) * shape[0]) % len(inputs)]
    return list(repeated.reshape(-1, *shape))


def _outputs(graph: Graph, batches: Sequence[np.ndarray], count: int) -> np.ndarray:
    evaluate = evaluator(graph)
    return np.concatenate([np.asarray(evaluate(batch)[0], np.float64) for batch in batches])[:count]


def _by_onednn(graph: Graph) -> Graph:
    """The same graph, computed by oneDNN where it can be."""

    def rewrite(node: Node) -> list[Node] | None:
        operation = node.operation
        if not isinstance(operation, FusedConvolution) or "onednn" not in operation.candidates("cpu"):
            return None
        return [Node(dataclasses.replace(operation, lowering="onednn"), node.inputs, node.outputs)]

    return rewritten(graph, rewrite)


def _top1(outputs: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float((outputs.argmax(axis=1) == labels).mean())
