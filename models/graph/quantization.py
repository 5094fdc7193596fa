"""Post-training quantisation of a graph: calibrated, and kept within a budget of accuracy by layers that stay float32.

The rule of calibration, and which layers stay in float32, are chosen by what they do to the network's outputs for the
calibration inputs.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from cambrian.models.graph.comparison import default_tolerance, deviation
from cambrian.models.graph.equalize import equalize, without_bounds
from cambrian.models.graph.fused_convolution import FusedConvolution, layer_name
from cambrian.models.graph.graph import Constant, Graph, Node, Value, rewritten
from cambrian.models.graph.observe import METHODS, evaluator, largest_of_channels, observe
from cambrian.models.graph.quantize import kernel_scale, quantizable, quantize, with_shared_scales
from cambrian.models.lowerings import Scale, lowerings_for
from cambrian.sharding import UsageError

LEAST_INPUTS = 16
_FEW_INPUTS = 64  # suffice for the ranges of channels, and to compare rules
# At least this relative error of the outputs against the same integers is tolerated.
_LEAST_TOLERANCE = 1e-2


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What a network is quantised by.

    Attributes:
      inputs: array (M, …), or pytree of arrays, of the network's inputs: at least LEAST_INPUTS, not all equal.
      source: where they come from, for people.
      labels: (M,) the right classes; None to take those of the float32 network.
      max_top1_drop: largest loss of top-1 on the inputs, in percentage points, of each output (N, classes).

    Raises:
      UsageError: if there are too few inputs, or not as many in each array, all are equal, or one isn't finite.
    """

    inputs: Any = dataclasses.field(repr=False)
    source: str
    labels: np.ndarray | None = dataclasses.field(default=None, repr=False)
    max_top1_drop: float = 0.5

    def __post_init__(self):
        arrays, counts = self.arrays, sorted({len(array) for array in self.arrays})
        if len(counts) > 1:
            got = " and ".join(map(str, counts))
            raise UsageError(f"int8 needs as many calibration inputs in each array, got {got}: {self.source}")
        if len(self) < LEAST_INPUTS:
            raise UsageError(f"int8 needs at least {LEAST_INPUTS} calibration inputs, got {len(self)}: {self.source}")
        if not all(np.isfinite(array).all() for array in arrays):
            raise UsageError(f"int8 needs calibration inputs of finite numbers, got NaN or infinity: {self.source}")
        if all((array == array[:1]).all() for array in arrays):
            raise UsageError(f"int8 needs calibration inputs that differ, got equal ones: {self.source}")

    @property
    def arrays(self) -> list[np.ndarray]:
        """The leaves of `inputs`."""
        return jax.tree.leaves(self.inputs)

    def __len__(self) -> int:
        return len(self.arrays[0])


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A quantised graph.

    Attributes:
      graph: computes with integers, in float32 until lowerings are chosen.
      structure: of the outputs.
      facts: JSON-compatible: calibration, loss of accuracy, scales.
      tolerance: largest relative error of outputs against the same integers on one device.
      notes: which layers stay in float32 for accuracy.
    """

    graph: Graph
    structure: jax.tree_util.PyTreeDef
    facts: dict[str, Any]
    tolerance: float
    notes: tuple[str, ...] = ()

    def reference(self, inputs: Any) -> Any:
        """Computes the outputs (M, …) for inputs (M, …) on one device, its integers in float32."""
        arrays = jax.tree.leaves(inputs)
        outputs = _outputs(self.graph, _batches(arrays, self.graph), len(arrays[0]))
        return jax.tree.unflatten(self.structure, outputs)


def quantized(graph: Graph, calibration: Calibration, function: Callable[[Any], Any] | None = None) -> Quantized:
    """Quantises a float32 graph with inputs and outputs (N, …), as `optimized` returns it.

    Args:
      function: the function of which the graph is, to compare with in float32; None if the graph is known to be right,
        with one input and one output.

    Raises:
      UsageError: if the calibration's inputs aren't those of the graph, integers can compute nothing of the graph, they
        lose more than the budget whatever stays in float32, or the graph isn't right.
    """
    _check(graph, calibration)
    batches, count = _batches(calibration.arrays, graph), len(calibration)
    size, structure = graph.inputs[0].shape[0], jax.tree.structure(0)
    few = batches[: -(-_FEW_INPUTS // size)]
    unbounded = without_bounds(graph)
    versions = [graph] if unbounded.nodes == graph.nodes else [graph, unbounded]
    balanced = [equalize(each, largest_of_channels(_by_onednn(each), few)) for each in versions]
    outputs, observed = zip(*[observe(_by_onednn(each), quantizable(each), batches) for each in balanced], strict=True)
    if function is not None:
        expected = function(jax.tree.unflatten(jax.tree.structure(calibration.inputs), batches[0]))
        structure = jax.tree.structure(expected)
        found = deviation(jax.tree.unflatten(structure, _first(outputs[0], size)), expected)
        if not found.error <= (tolerance := default_tolerance(graph, "float32")):
            raise UsageError(
                f"int8 needs float32 outputs of the optimised function within {tolerance:g} of its own, got {found}"
            )
    judge = _Judge(_first(outputs[0], count), calibration.labels)
    schemes = [
        _Scheme(
            each,
            method,
            with_shared_scales(each, {value: values.scale(method) for value, values in of_graph.items()}),
        )
        for each, of_graph in zip(balanced, observed, strict=True)
        for method in METHODS
    ]
    scheme = min(schemes, key=lambda each: judge.error(_outputs(_by_onednn(each.quantized()), few, count)))

    def computed(kept: Sequence[Node]) -> tuple[Graph, list[np.ndarray]]:
        made = scheme.quantized(kept)
        return made, _outputs(_by_onednn(made), batches, count)

    def suffices(kept: Sequence[Node]) -> bool:
        return judge.top1_drop(computed(kept)[1]) <= calibration.max_top1_drop

    kept: list[Node] = []
    made, results = computed(kept)
    if judge.top1_drop(results) > calibration.max_top1_drop:
        kept = _fewest(_worst_first(scheme, batches[0]), suffices)
        made, results = computed(kept)
    facts = {
        "calibrated_on": calibration.source,
        "num_images": count,
        "method": scheme.method,
        "relative_error": judge.error(results),
        "top1_agreement": judge.top1_agreement(results),
        "top1_drop": judge.top1_drop(results),
        "max_top1_drop": calibration.max_top1_drop,
        "labels": "the float32 network's" if calibration.labels is None else "the images' own",
        "float32_layers": [layer_name(node) for node in kept],
        "scales": {
            layer_name(node): {"input": scheme.scales[node.inputs[0]].scale, "kernel": kernel_scale(node)}
            for node in scheme.nodes
            if node not in kept
        },
    }
    note = (
        f"{len(kept)} of {len(scheme.nodes)} layers stay in float32, to lose at most {calibration.max_top1_drop:g} "
        f"points of top-1: {', '.join(map(layer_name, kept[:3]))}{', …' if len(kept) > 3 else ''}"
    )
    # A float32 value between two integers may be rounded to the other one by another partition; all that follows then
    # differs, but not by more than rounding itself costs.
    tolerance = max(_LEAST_TOLERANCE, 2 * facts["relative_error"])
    return Quantized(made, structure, facts, tolerance, (note,) if kept else ())


def _check(graph: Graph, calibration: Calibration) -> None:
    found = jax.tree.leaves_with_path(calibration.inputs)
    if len(found) != len(graph.inputs):
        raise UsageError(
            f"int8 needs calibration inputs for each of the network's {len(graph.inputs)}, got {len(found)} arrays: "
            f"{calibration.source}"
        )
    for (path, inputs), expected in zip(found, graph.inputs, strict=True):
        are_floats = [jnp.issubdtype(dtype, jnp.floating) for dtype in (inputs.dtype, expected.dtype)]
        is_alike = are_floats[0] == are_floats[1] and np.can_cast(inputs.dtype, expected.dtype, "same_kind")
        if inputs.shape[1:] != expected.shape[1:] or not is_alike:
            name = "/".join(["inputs", keystr(path, simple=True, separator="/")] if path else ["inputs"])
            shape = ", ".join(["M", *map(str, expected.shape[1:])])
            raise UsageError(
                f"int8 needs calibration {name} ({shape}) {expected.dtype}, got {inputs.shape} {inputs.dtype}: "
                f"{calibration.source}"
            )
    if not quantizable(graph):
        raise UsageError(
            "int8 computes convolutions and dense layers but the last, and those with channel groups: the network has "
            "none of them"
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Scheme:
    """A float32 graph, one of METHODS, and the scales of its activations by it."""

    graph: Graph
    method: str
    scales: Mapping[Value, Scale]

    @property
    def nodes(self) -> list[Node]:
        return quantizable(self.graph)

    def quantized(self, kept: Sequence[Node] = ()) -> Graph:
        return quantize(self.graph, self.scales, {*self.nodes}.difference(kept))


class _Judge:
    """Compares outputs with those of the float32 network. Floats (M, classes) are those of a classifier."""

    def __init__(self, expected: Sequence[np.ndarray], labels: np.ndarray | None):
        self.expected, self.labels = expected, labels
        self.logits = [
            place
            for place, array in enumerate(expected)
            if array.ndim == 2 and jnp.issubdtype(array.dtype, jnp.floating)
        ]

    def error(self, outputs: Sequence[np.ndarray]) -> float:
        """The largest relative error of the outputs for the first inputs."""
        return deviation(outputs, _first(self.expected, len(outputs[0]))).error

    def top1_agreement(self, outputs: Sequence[np.ndarray]) -> float | None:
        """The share of inputs with the float32 network's class, the smallest of the outputs'."""
        shares = [
            _num_right(outputs[place], self.expected[place].argmax(axis=1)) / len(outputs[place])
            for place in self.logits
        ]
        return min(shares, default=None)

    def top1_drop(self, outputs: Sequence[np.ndarray]) -> float:
        """The largest loss of top-1 in percentage points, rounded once: losing the whole budget compares as equal."""

        def drop(got: np.ndarray, exact: np.ndarray) -> float:
            labels = exact.argmax(axis=1) if self.labels is None else self.labels
            return 100 * (_num_right(exact, labels) - _num_right(got, labels)) / len(got)

        return max((drop(outputs[place], self.expected[place]) for place in self.logits), default=0.0)


def _fewest(worst_first: Sequence[Node], suffices: Callable[[Sequence[Node]], bool]) -> list[Node]:
    """The shortest start of a sequence that suffices, by bisection."""
    too_few, enough = 0, len(worst_first)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if suffices(worst_first[:middle]) else (middle, enough)
    if enough == len(worst_first):
        raise UsageError("int8 loses more top-1 than max_top1_drop allows unless all layers stay in float32")
    return list(worst_first[:enough])


def _worst_first(scheme: _Scheme, batch: Sequence[np.ndarray]) -> list[Node]:
    """The nodes of a scheme in the order of the relative error that each alone makes on float32 operands."""
    added, pairs = [], []
    for node in scheme.nodes:
        operands = tuple(value for value in node.inputs if not isinstance(value, Constant))
        alone = quantize(Graph(operands, (node,), node.outputs), scheme.scales, {node})
        added += alone.nodes
        pairs.append((node.output, *alone.outputs))
    graph = scheme.graph
    both = Graph(graph.inputs, (*graph.nodes, *added), tuple(value for pair in pairs for value in pair))

    def errors(values: Sequence[jax.Array]) -> list[jax.Array]:
        norm, least = jnp.linalg.norm, np.finfo(np.float32).tiny  # a layer may give zeros alone
        return [norm(got - exact) / (norm(exact) + least) for exact, got in zip(values[::2], values[1::2], strict=True)]

    by_node = dict(zip(scheme.nodes, evaluator(_by_onednn(both), errors)(*batch), strict=True))
    return sorted(by_node, key=lambda node: -float(by_node[node]))


def _batches(arrays: Sequence[np.ndarray], graph: Graph) -> list[list[np.ndarray]]:
    """Cuts arrays (M, …) into batches of the graph's size and dtypes, the last one filled up by a repetition."""
    count, size = len(arrays[0]), graph.inputs[0].shape[0]
    places = (np.arange(-(-count // size) * size) % count).reshape(-1, size)
    return [
        [array[chosen].astype(value.dtype) for array, value in zip(arrays, graph.inputs, strict=True)]
        for chosen in places
    ]


def _outputs(graph: Graph, batches: Sequence[Sequence[np.ndarray]], count: int) -> list[np.ndarray]:
    """The outputs for the first `count` inputs of batches, or for all if these are fewer."""
    evaluate = evaluator(graph)
    of_batches = [list(map(np.asarray, evaluate(*batch))) for batch in batches]
    return _first(list(map(np.concatenate, zip(*of_batches, strict=True))), count)


def _first(arrays: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    return [array[:count] for array in arrays]


def _by_onednn(graph: Graph) -> Graph:
    """The same graph, computed by oneDNN where it can be."""

    def rewrite(node: Node) -> list[Node] | None:
        operation = node.operation
        if not isinstance(operation, FusedConvolution) or "onednn" not in lowerings_for(operation, "cpu"):
            return None
        return [Node(dataclasses.replace(operation, lowering="onednn"), node.inputs, node.outputs)]

    return rewritten(graph, rewrite)


def _num_right(outputs: np.ndarray, labels: np.ndarray) -> int:
    return int((outputs.argmax(axis=1) == labels).sum())
