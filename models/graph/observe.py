"""Scales of 8-bit activations, from what the activations of a graph are on calibration inputs.

Three rules map a tensor's values to a scale: `minmax` its largest value to 255, `percentile` the value below which
99.99% lie, `mse` the value that leaves the smallest mean squared error of rounding and saturation. See Nagel et al.,
arXiv:2106.08295, section 3.1.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from cambrian.models.graph.fused_convolution import FusedConvolution
from cambrian.models.graph.graph import Graph, Node, Value
from cambrian.models.lowerings import Scale

METHODS = ("minmax", "percentile", "mse")
_PERCENTILE = 99.99
_SAMPLED = 4096  # values of a tensor that are kept of each batch
_CLIPPED_AT = np.linspace(0.3, 1.0, 29)  # of the largest value


@dataclasses.dataclass(frozen=True, slots=True)
class Observed:
    """The values of an activation: the smallest, the largest, and a sample of all."""

    smallest: float
    largest: float
    sample: np.ndarray

    def scale(self, method: str) -> Scale:
        """The scale of its 8-bit form by one of METHODS."""
        is_signed, largest = self.smallest < 0, max(self.largest, -self.smallest) or 1.0
        levels = 127 if is_signed else 255

        def squared_error(top: float) -> float:
            scale = top / levels
            rounded = np.clip(np.rint(self.sample / scale), -levels if is_signed else 0, levels)
            return float(np.square(rounded * scale - self.sample).mean())

        match method:
            case "minmax":
                top = largest
            case "percentile":
                top = float(np.percentile(abs(self.sample), _PERCENTILE)) or largest
            case _:
                top = min((share * largest for share in _CLIPPED_AT), key=squared_error)
        return Scale(top / levels, "int8" if is_signed else "uint8")


def observe(
    graph: Graph, nodes: Sequence[Node], batches: Sequence[Sequence[np.ndarray]]
) -> tuple[list[np.ndarray], dict[Value, Observed]]:
    """Evaluates a float32 graph on inputs.

    Args:
      graph: float32 graph.
      nodes: fused convolutions of the graph.
      batches: inputs of the graph.

    Returns:
      The outputs, and what each activation is that `nodes` read or make.
    """
    wanted = list(dict.fromkeys(value for node in nodes for value in (node.inputs[0], node.output)))
    strides = [_stride(value) for value in wanted]

    def observed(values: Sequence[jax.Array]) -> tuple[Sequence[jax.Array], list[tuple[jax.Array, ...]]]:
        outputs, activations = values[: len(graph.outputs)], values[len(graph.outputs) :]
        samples = [x.reshape(-1)[::step] for x, step in zip(activations, strides, strict=True)]
        return outputs, [(x.min(), x.max(), sample) for x, sample in zip(activations, samples, strict=True)]

    evaluate = evaluator(Graph(graph.inputs, graph.nodes, (*graph.outputs, *wanted)), observed)
    outputs, of_batches = zip(*[jax.tree.map(np.asarray, evaluate(*batch)) for batch in batches], strict=True)
    by_value = {}
    for value, of_value in zip(wanted, zip(*of_batches, strict=True), strict=True):
        smallest, largest, samples = zip(*of_value, strict=True)
        by_value[value] = Observed(float(min(smallest)), float(max(largest)), np.concatenate(samples))
    return list(map(np.concatenate, zip(*outputs, strict=True))), by_value


def _stride(value: Value) -> int:
    """The distance of sampled values: coprime with the number of channels, so that every channel is met."""
    return next(step for step in itertools.count(value.size // _SAMPLED + 1) if math.gcd(step, value.shape[-1]) == 1)


def largest_of_channels(graph: Graph, batches: Sequence[Sequence[np.ndarray]]) -> dict[Value, np.ndarray]:
    """Returns the largest value of each channel (C,) of what fused convolutions make by a ReLU."""
    made = [
        node.output
        for node in graph.nodes
        if isinstance(node.operation, FusedConvolution) and node.operation.activation == "RELU"
    ]
    evaluate = evaluator(
        Graph(graph.inputs, graph.nodes, tuple(made)),
        lambda values: [x.max(axis=tuple(range(x.ndim - 1))) for x in values],
    )
    found = [evaluate(*batch) for batch in batches]
    return {value: np.max(maxima, axis=0) for value, maxima in zip(made, zip(*found, strict=True), strict=True)}


def evaluator(graph: Graph, then: Callable[[Sequence[jax.Array]], Any] = lambda outputs: outputs) -> Callable[..., Any]:
    """Returns a compiled function from a batch of each input to `then(outputs)`, on the host's CPU."""
    constants, cpu = graph.constants(), jax.local_devices(backend="cpu")[0]
    arrays = jax.device_put([constant.array for constant in constants], cpu)

    @jax.jit
    def evaluate(arrays: Sequence[jax.Array], batch: Sequence[jax.Array]):
        return then(graph.evaluate(dict(zip(constants, arrays, strict=True)), batch))

    return lambda *batch: evaluate(arrays, jax.device_put(batch, cpu))
