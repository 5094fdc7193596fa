"""Pass: convolutions and dense layers on 8-bit integers, except those that keep float32.

Activations are uint8 with one scale for the tensor. After a ReLU, 0 stands for zero; saturation is the ReLU itself, and
the bound of a ReLU6. What may be negative has its zero at 128, which the bias accounts for. It is int8 with its zero at
0 where a convolution pads it, or where another activation makes it, after which oneDNN's call adds nothing. Kernels
are int8, symmetric, with one scale for the tensor, as oneDNN's call scales whole tensors. Products are exact in int32.
Bias, residual, activation and the scale of the result are applied in float32 before it is rounded, as
`FusedConvolution` describes. Following Jacob et al., arXiv:1712.05877, and Nagel et al., arXiv:2106.08295.

A result is float32 if it has no activation and not integers alone read it, if a residual precedes an activation other
than a ReLU, and of layers that keep float32. Between integers and floats stand `Quantize` and `Dequantize`.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cambrian.models.graph.constants import uniform_value
from cambrian.models.graph.find_poolings import Pool, max_pool_of
from cambrian.models.graph.fused_convolution import FusedConvolution, last_convolutions, weights
from cambrian.models.graph.graph import Constant, Graph, Node, Uses, Value, without_dead_nodes
from cambrian.models.graph.views import view_of
from cambrian.models.lowerings.lowering import Scale
from cambrian.models.lowerings.onednn_forms import fused_activations

_LARGEST_INT8 = 127
_MOST_PRODUCTS = (2**31 - 1) // (255 * _LARGEST_INT8)
_ZERO = 128  # of activations that may be negative
_FLOAT = Scale(1.0, "float32")  # of what stays in float32
_SATURATING = ("RELU", "RELU6")
_SCALE_OF_RELU6 = 6 / 255  # the largest whose integers end at its bound


@dataclasses.dataclass(frozen=True, slots=True)
class Quantize:
    """Float32 to integers."""

    scale: Scale
    name = "quantize"

    def __call__(self, *arrays: jax.Array) -> list[jax.Array]:
        return [self.scale.quantize(x) for x in arrays]


@dataclasses.dataclass(frozen=True, slots=True)
class Dequantize:
    """Integers to float32."""

    scale: Scale
    name = "dequantize"

    def __call__(self, *arrays: jax.Array) -> list[jax.Array]:
        return [self.scale.restore(x) for x in arrays]


def quantizable(graph: Graph) -> list[Node]:
    """The convolutions and dense layers that integers can compute, in order.

    Channel groups are as many as channels, and sums of products fit in int32. The last layers keep float32: they take
    little of the time, and nothing rounds their results again.
    """
    last = last_convolutions(graph)
    return [
        node
        for node in graph.nodes
        if isinstance(node.operation, FusedConvolution)
        and node not in last
        and node.operation.dtype == node.operation.out_dtype == "float32"
        and (node.operation.groups == 1 or node.operation.is_depthwise)
        and node.operation.activation in (None, *_SATURATING, *fused_activations())
        and math.prod(node.operation.kernel_shape[:3]) <= _MOST_PRODUCTS
    ]


def quantize(graph: Graph, scales: Mapping[Value, Scale], nodes: set[Node]) -> Graph:
    """Computes `nodes` on integers.

    Args:
      graph: graph in float32, as `cambrian.models.graph.passes.optimized` returns it.
      scales: of each activation that `nodes` read or make.
      nodes: some of `quantizable(graph)`.
    """
    uses = Uses(graph)
    # Padding consists of zeros, and nothing is added after an activation.
    at_zero = {node.inputs[0] for node in nodes if _is_padded(node)} | {
        node.output for node in nodes if not _saturates(node)
    }
    scales = {
        value: Scale(scale.scale, "uint8", _ZERO) if scale.dtype == "int8" and value not in at_zero else scale
        for value, scale in scales.items()
    }
    integers: dict[Value, Value] = {}  # value of `graph` → its 8-bit form
    floats: dict[Value, Value | None] = {}  # value that is made as integers → its float32 form, if anything reads it
    made: list[Node] = []

    def as_integers(value: Value) -> Value:
        if value not in integers:
            integers[value] = Value(value.shape, jnp.dtype(scales[value].dtype))
            made.append(Node(Quantize(scales[value]), (value,), (integers[value],)))
        return integers[value]

    def as_float32(value: Value) -> Value:
        if value not in floats:
            return value
        if (found := floats[value]) is None:
            found = floats[value] = Value(value.shape, value.dtype)
            made.append(Node(Dequantize(scales[value]), (integers[value],), (found,)))
        return found

    def made_as_integers(value: Value) -> Value:
        integers[value], floats[value] = Value(value.shape, jnp.dtype(scales[value].dtype)), None
        return integers[value]

    for node in graph.nodes:
        if node in nodes:
            images, _, _, *residuals = node.inputs
            assert isinstance(node.operation, FusedConvolution)
            integers_read = nodes.issuperset(uses.readers(node.output)) and not uses.is_result(node.output)
            activation = node.operation.activation
            makes_integers = integers_read if activation is None else _saturates(node) or not residuals
            out = scales[node.output] if makes_integers else _FLOAT
            read = [scales[value] for value in residuals if value in floats]
            residual = read[0] if read else _FLOAT if residuals or not _saturates(node) else out
            operation, kernel, bias = _on_integers(node, scales[images], residual, out)
            added = [integers[value] if value in floats else value for value in residuals]
            operands = (as_integers(images), kernel, bias, *added)
            made.append(Node(operation, operands, (made_as_integers(node.output) if makes_integers else node.output,)))
        elif (moved := _moved(node)) and floats.keys() >= {*moved} and len({scales[value] for value in moved}) == 1:
            scale = scales[node.output] = scales[moved[0]]
            operation = node.operation
            operation = dataclasses.replace(operation, dtype=scale.dtype) if isinstance(operation, Pool) else operation
            zeros = [Constant.of(np.asarray(scale.zero, scale.dtype)) for _ in node.inputs[len(moved) :]]
            operands = (*(integers[value] for value in moved), *zeros)
            made.append(Node(operation, operands, (made_as_integers(node.output),)))
        else:
            made.append(Node(node.operation, tuple(map(as_float32, node.inputs)), node.outputs))
    outputs = tuple(map(as_float32, graph.outputs))
    return without_dead_nodes(Graph(graph.inputs, tuple(made), outputs))


def with_shared_scales(graph: Graph, scales: Mapping[Value, Scale]) -> dict[Value, Scale]:
    """Gives what is concatenated the largest scale of its parts, so that the concatenation moves integers.

    Not beyond the scale whose saturation is the bound of a ReLU6 among the parts.
    """
    makers, shared = Uses(graph).makers, dict(scales)

    def parts(value: Value) -> list[Value]:
        moved = _moved(makers[value]) if value in makers else ()
        return [part for each in moved for part in parts(each)] or [value]

    joined = [parts(node.output) for node in graph.nodes if node.name == "concatenate"]
    joined = [each for each in joined if shared.keys() >= {*each} and len({shared[part].dtype for part in each}) == 1]
    bounded = {node.output for node in quantizable(graph) if node.operation.activation == "RELU6"}
    before = None
    while before != shared:  # a part may belong to several
        before = dict(shared)
        for each in joined:
            largest = max(shared[part] for part in each)
            if largest.scale <= _SCALE_OF_RELU6 or bounded.isdisjoint(each):
                shared |= dict.fromkeys(each, largest)
    return shared


def _on_integers(node: Node, images: Scale, residual: Scale, out: Scale) -> tuple[FusedConvolution, Constant, Constant]:
    """The operation, kernel and bias of a convolution on integers; no residual has the scale of the result."""
    operation, (kernel, bias) = node.operation, weights(node)
    assert isinstance(operation, FusedConvolution)
    scale = kernel_scale(node)
    unit = images.scale * scale  # of a product
    on_integers = dataclasses.replace(
        operation,
        dtype=images.dtype,
        out_dtype=out.dtype,
        activation="RELU" if operation.activation in _SATURATING else operation.activation,
        scales=(unit / residual.scale, residual.scale / out.scale),
        precision=lax.Precision.HIGHEST,
    )
    integers = np.rint(kernel.array / scale)
    zeros = out.zero * out.scale - residual.zero * residual.scale * operation.residual
    shift = zeros / unit - images.zero * integers.sum(axis=(0, 1, 2))
    return (
        on_integers,
        Constant.of(integers.astype(np.int8), kernel.path),
        Constant.of((bias.array / unit + shift).astype(np.float32), bias.path),
    )


def _moved(node: Node) -> tuple[Value, ...]:
    """The inputs that a node only moves or selects: in max pooling, padding with zeros, views and concatenations."""
    if node.name == "concatenate":
        return node.inputs
    if node.name == "pad":
        return node.inputs[:1] if uniform_value(node.inputs[1]) == 0 else ()
    return node.inputs[:1] if max_pool_of(node) or view_of(node) else ()


def _saturates(node: Node) -> bool:
    """Whether nothing but saturation follows a convolution: it has no other activation."""
    assert isinstance(node.operation, FusedConvolution)
    return node.operation.activation in (None, *_SATURATING)


def _is_padded(node: Node) -> bool:
    assert isinstance(node.operation, FusedConvolution)
    return any(size for sides in node.operation.window.padding for size in sides)


def kernel_scale(node: Node) -> float:
    """The scale that maps the largest magnitude of a convolution's kernel to 127."""
    return float(np.abs(weights(node)[0].array).max()) / _LARGEST_INT8 or 1.0
