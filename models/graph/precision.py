"""Pass: activations and kernels in bfloat16, and float32 where rounding would show.

Convolutions take and give bfloat16 and accumulate in float32. Elementwise operations compute in float32 on operands
that are stored in bfloat16; XLA computes chains of them without storing what is in between. In float32 stay reductions
with everything that is no larger than their results (the statistics of a normalisation), exponentials with what they
are divided by (softmax), products of two activations, and the last layers.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from cambrian.models.graph.elementwise import is_elementwise
from cambrian.models.graph.fused_convolution import FusedConvolution
from cambrian.models.graph.graph import Constant, Graph, Node, Value
from cambrian.models.graph.views import view_of

_WIDE, _NARROW = jnp.dtype("float32"), jnp.dtype("bfloat16")
_IN_FLOAT32 = ("exp", "exp2", "expm1", "log", "log1p")
# They give elements of their operands.
_MOVES = ("broadcast_in_dim", "concatenate", "pad", "reduce_max", "reduce_window_max", "rev", "select_n", "slice")


@dataclasses.dataclass(frozen=True, slots=True)
class Cast:
    """The operand in another dtype."""

    dtype: str
    name = "cast"

    def __call__(self, *arrays: jax.Array) -> list[jax.Array]:
        (array,) = arrays
        return [lax.convert_element_type(array, self.dtype)]


def in_bfloat16(graph: Graph) -> Graph:
    """Computes a float32 graph in bfloat16; results keep their dtype."""
    last = _last_convolutions(graph)
    stored: dict[Value, Value] = {value: value for value in graph.inputs}  # value → how it is stored
    casts: dict[tuple[Value, str], Value] = {}
    nodes: list[Node] = []

    def read(value: Value, dtype: str) -> Value:
        """`value` in `dtype`, if it is floating point; as it is otherwise."""
        value = stored.get(value, value)
        if value.dtype not in (_WIDE, _NARROW) or str(value.dtype) == dtype:
            return value
        if isinstance(value, Constant):
            return Constant.of(value.array.astype(dtype))
        if (value, dtype) not in casts:
            casts[value, dtype] = Value(value.shape, jnp.dtype(dtype))
            nodes.append(Node(Cast(dtype), (value,), (casts[value, dtype],)))
        return casts[value, dtype]

    def is_narrow(value: Value) -> bool:
        return stored.get(value, value).dtype == _NARROW

    for node in graph.nodes:
        operation = node.operation
        if isinstance(operation, FusedConvolution) and operation.dtype == "float32":
            dtype = "float32" if node in last else "bfloat16"
            fused = dataclasses.replace(operation, dtype=dtype, out_dtype=dtype)
            images, kernel, bias, *residual = node.inputs
            output = Value(node.output.shape, jnp.dtype(dtype))
            operands = (read(images, dtype), kernel, bias, *(read(value, dtype) for value in residual))
            nodes.append(Node(fused, operands, (output,)))
            stored[node.output] = output
            continue
        moves = view_of(node) is not None or node.name in _MOVES
        if moves and len(node.outputs) == 1 and any(map(is_narrow, node.inputs)):
            output = Value(node.output.shape, _NARROW if node.output.dtype == _WIDE else node.output.dtype)
            nodes.append(Node(operation, tuple(read(value, "bfloat16") for value in node.inputs), (output,)))
            stored[node.output] = output
            continue
        nodes.append(Node(operation, tuple(read(value, "float32") for value in node.inputs), node.outputs))
        if (
            is_elementwise(node)
            and node.name not in _IN_FLOAT32
            and node.output.dtype == _WIDE
            and any(is_narrow(value) and value.size == node.output.size for value in node.inputs)
        ):
            stored[node.output] = Value(node.output.shape, _NARROW)
            nodes.append(Node(Cast("bfloat16"), node.outputs, (stored[node.output],)))
    outputs = tuple(read(value, str(value.dtype)) for value in graph.outputs)
    return Graph(graph.inputs, tuple(nodes), outputs)


def _last_convolutions(graph: Graph) -> set[Node]:
    """The convolutions whose results reach the graph's results without another convolution."""
    reaching, last = set(graph.outputs), set()
    for node in reversed(graph.nodes):
        if not reaching.intersection(node.outputs):
            continue
        if isinstance(node.operation, FusedConvolution):
            last.add(node)
        else:
            reaching.update(node.inputs)
    return last
