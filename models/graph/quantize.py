"""Pass: convolutions and dense layers on 8-bit integers, except those that keep float32.

Activations after a ReLU are uint8 with one scale for the tensor, x ≈ scale · q; the images of the first convolution,
which may be negative, are int8. Zero is exactly 0, so padding, max pooling and halos need no other treatment. Kernels
are int8, symmetric, with one scale for the tensor, as oneDNN's call scales whole tensors. Products are exact in int32.
Bias, residual, ReLU and the scale of the result are applied in float32 before it is rounded, as
`cambrian.models.lowerings.Finish` describes. Following Jacob et al., arXiv:1712.05877, and Nagel et al.,
arXiv:2106.08295.

Results without a ReLU, and those of layers that keep float32, are float32. Between the two stand `Quantize` and
`Dequantize`.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cambrian.models.graph.find_poolings import is_max_pool
from cambrian.models.graph.fused_convolution import FusedConvolution
from cambrian.models.graph.graph import Constant, Graph, Node, Value, without_dead_nodes
from cambrian.models.lowerings.lowering import to_dtype

_LARGEST_INT8 = 127


class Scale(NamedTuple):
    """The scale of an activation, and the dtype of its 8-bit form, uint8 or int8."""

    scale: float
    dtype: str


@dataclasses.dataclass(frozen=True, slots=True)
class Quantize:
    """Float32 to integers: x / scale, rounded half to even, saturated."""

    scale: float
    dtype: str
    name = "quantize"

    def __call__(self, *arrays: jax.Array) -> list[jax.Array]:
        (x,) = arrays
        return [to_dtype(x * np.float32(1 / self.scale), self.dtype)]


@dataclasses.dataclass(frozen=True, slots=True)
class Dequantize:
    """Integers to float32."""

    scale: float
    name = "dequantize"

    def __call__(self, *arrays: jax.Array) -> list[jax.Array]:
        (x,) = arrays
        return [x.astype(jnp.float32) * np.float32(self.scale)]


def quantizable(graph: Graph) -> list[Node]:
    """The convolutions and dense layers that integers can compute, in order.

    They read what is never negative, or are the first. The last layer keeps float32: it takes little of the time, and
    nothing rounds its results again.
    """
    convolutions = [node for node in graph.nodes if isinstance(node.operation, FusedConvolution)]
    never_negative: set[Value] = set()
    for node in graph.nodes:
        if isinstance(node.operation, FusedConvolution):
            if node.operation.activation == "RELU":
                never_negative.add(node.output)
        elif (node.name == "pad" or is_max_pool(node)) and all(
            bool((value.array >= 0).all()) if isinstance(value, Constant) else value in never_negative
            for value in node.inputs
        ):
            never_negative.add(node.output)
    return [
        node
        for node in convolutions[:-1]
        if isinstance(node.operation, FusedConvolution)
        and node.operation.dtype == node.operation.out_dtype == "float32"
        and node.operation.groups == 1
        and node.operation.activation in (None, "RELU")
        and (node.inputs[0] in never_negative or node is convolutions[0])
    ]


def quantize(graph: Graph, scales: Mapping[Value, Scale], nodes: set[Node]) -> Graph:
    """Computes `nodes` on integers.

    Args:
      graph: graph in float32, as `cambrian.models.graph.passes.optimized` returns it.
      scales: of each activation that `nodes` read or that they make by a ReLU.
      nodes: some of `quantizable(graph)`.
    """
    scales = dict(scales)
    integers: dict[Value, Value] = {}  # value of `graph` → its 8-bit form
    floats: dict[Value, Value | None] = {}  # value that is made as integers → its float32 form, if anything reads it
    made: list[Node] = []

    def as_integers(value: Value) -> Value:
        if value not in integers:
            scale, dtype = scales[value]
            integers[value] = Value(value.shape, jnp.dtype(dtype))
            made.append(Node(Quantize(scale, dtype), (value,), (integers[value],)))
        return integers[value]

    def as_float32(value: Value) -> Value:
        if value not in floats:
            return value
        if (found := floats[value]) is None:
            found = floats[value] = Value(value.shape, value.dtype)
            made.append(Node(Dequantize(scales[value].scale), (integers[value],), (found,)))
        return found

    def made_as_integers(value: Value) -> Value:
        integers[value], floats[value] = Value(value.shape, jnp.dtype(scales[value].dtype)), None
        return integers[value]

    for node in graph.nodes:
        if node in nodes:
            images, _, _, *residuals = node.inputs
            assert isinstance(node.operation, FusedConvolution)
            makes_integers = node.operation.activation == "RELU"
            # A residual in float32 is in the units of the result.
            residual_scale = next((scales[value].scale for value in residuals if value in floats), 1.0)
            out_scale = scales[node.output].scale if makes_integers else 1.0
            operation, kernel, bias = _on_integers(
                node, scales[images], residual_scale if residuals else out_scale, out_scale
            )
            added = [integers[value] if value in floats else value for value in residuals]
            operands = (as_integers(images), kernel, bias, *added)
            made.append(Node(operation, operands, (made_as_integers(node.output) if makes_integers else node.output,)))
        elif is_max_pool(node) and node.inputs[0] in floats:
            scales[node.output] = scales[node.inputs[0]]
            pool = dataclasses.replace(node.operation, dtype=scales[node.output].dtype)
            made.append(Node(pool, (integers[node.inputs[0]],), (made_as_integers(node.output),)))
        else:
            made.append(Node(node.operation, tuple(map(as_float32, node.inputs)), node.outputs))
    outputs = tuple(map(as_float32, graph.outputs))
    return without_dead_nodes(Graph(graph.inputs, tuple(made), outputs))


def _on_integers(
    node: Node, images: Scale, residual_scale: float, out_scale: float
) -> tuple[FusedConvolution, Constant, Constant]:
    """The operation, kernel and bias of a convolution on integers, whose result is in units of `out_scale`."""
    operation, (_, kernel, bias, *_) = node.operation, node.inputs
    assert isinstance(operation, FusedConvolution)
    assert isinstance(kernel, Constant)
    assert isinstance(bias, Constant)
    scale = kernel_scale(node)
    unit = images.scale * scale  # of a product
    on_integers = dataclasses.replace(
        operation,
        dtype=images.dtype,
        out_dtype="uint8" if operation.activation == "RELU" else "float32",
        scales=(unit / residual_scale, residual_scale / out_scale),
    )
    return (
        on_integers,
        Constant.of(np.rint(kernel.array / scale).astype(np.int8), kernel.path),
        Constant.of((bias.array / unit).astype(np.float32), bias.path),
    )


def kernel_scale(node: Node) -> float:
    """The scale that maps the largest magnitude of a convolution's kernel to 127."""
    kernel = node.inputs[1]
    assert isinstance(kernel, Constant)
    return float(np.abs(kernel.array).max()) / _LARGEST_INT8 or 1.0
