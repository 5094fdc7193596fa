"""Pass: float32 activations and kernels in bfloat16, and float32 where rounding would show.

Convolutions take and give bfloat16 and accumulate in float32. Chains of elementwise operations compute in float32, on
operands and with results that are stored in bfloat16. Products of two activations take bfloat16 and give float32. In
float32 stay reductions with everything that is no larger than their results (the statistics of a normalisation),
exponentials with what they are divided by (softmax), and the last layers.
"""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
from jax import lax

from cambrian.models.graph.elementwise import is_elementwise
from cambrian.models.graph.find_poolings import Pool
from cambrian.models.graph.fused_convolution import FusedConvolution
from cambrian.models.graph.graph import Constant, Graph, Node, Operation, Primitive, Uses, Value
from cambrian.models.graph.views import Reshape, view_of

_WIDE, _NARROW = jnp.dtype("float32"), jnp.dtype("bfloat16")
_IN_FLOAT32 = ("exp", "exp2", "expm1", "log", "log1p")
# They give elements of their operands.
_MOVES = ("broadcast_in_dim", "concatenate", "crop", "depth_taps", "pad", "rev", "select_n", "slice", "split")
_COMPARE = ("reduce_max", "reduce_window_max")


@dataclasses.dataclass(frozen=True, slots=True)
class Cast:
    """The operand in another dtype.

    Attributes:
      dtype: dtype of the result.
      barriers: number of optimisation barriers before it. XLA doesn't unite casts of one operand with different numbers
        of barriers; it would store what it unites for all of the readers.
    """

    dtype: str
    barriers: int = 0
    name = "cast"

    def __call__(self, *arrays: jax.Array) -> list[jax.Array]:
        (array,) = arrays
        for _ in range(self.barriers):
            array = lax.optimization_barrier(array)
        return [lax.convert_element_type(array, self.dtype)]


@dataclasses.dataclass(frozen=True, slots=True)
class Bits:
    """An operation that moves bfloat16 values, as one that moves integers: XLA:CPU would move them in float32."""

    operation: Operation

    @property
    def name(self) -> str:
        return self.operation.name

    def __call__(self, *arrays: jax.Array) -> list[jax.Array]:
        bits = [lax.bitcast_convert_type(a, jnp.uint16) if a.dtype == _NARROW else a for a in arrays]
        return [lax.bitcast_convert_type(result, _NARROW) for result in self.operation(*bits)]


def in_bfloat16(graph: Graph) -> Graph:
    """Computes what a graph computes in float32 in bfloat16; results keep their dtype."""
    uses = Uses(graph)
    last, reducing = _last_convolutions(graph), _reducing(graph, uses)
    within: set[Value] = set()  # values in a chain of elementwise operations that starts from bfloat16
    stored: dict[Value, Value] = {value: value for value in graph.inputs}  # value → how it is stored
    casts: dict[tuple[Value, str, Node | None], Value] = {}
    barriers: Counter[Value] = Counter()
    nodes: list[Node] = []

    def read(value: Value, dtype: str = "", reader: Node | None = None) -> Value:
        """`value` in `dtype`, if it is floating point, or in the graph's; cast for `reader` alone, if one is given."""
        dtype, value = dtype or str(value.dtype), stored.get(value, value)
        if value.dtype not in (_WIDE, _NARROW) or str(value.dtype) == dtype:
            return value
        if isinstance(value, Constant):
            return Constant.of(value.array.astype(dtype))
        if (value, dtype, reader) not in casts:
            cast = casts[value, dtype, reader] = Value(value.shape, jnp.dtype(dtype))
            barriers[value] += reader is not None
            nodes.append(Node(Cast(dtype, 0 if reader is None else barriers[value]), (value,), (cast,)))
        return casts[value, dtype, reader]

    def is_narrow(value: Value) -> bool:
        return value in within or stored.get(value, value).dtype == _NARROW

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
        if isinstance(operation, Pool) and is_narrow(node.inputs[0]):
            pooled = dataclasses.replace(operation, dtype="bfloat16")
            stored[node.output] = Value(node.output.shape, _NARROW)
            nodes.append(Node(pooled, (read(node.inputs[0], "bfloat16"),), (stored[node.output],)))
            continue
        moves = view_of(node) is not None or node.name in _MOVES or node.name in _COMPARE
        if moves and any(map(is_narrow, node.inputs)) and not within.intersection(node.inputs):
            outputs = [Value(each.shape, _NARROW if each.dtype == _WIDE else each.dtype) for each in node.outputs]
            keeps = node.name in _COMPARE or isinstance(view_of(node), Reshape)
            moved = operation if keeps else Bits(operation)
            nodes.append(Node(moved, tuple(read(value, "bfloat16") for value in node.inputs), tuple(outputs)))
            stored.update(zip(node.outputs, outputs, strict=True))
            continue
        if node.name == "dot_general" and node.output.dtype == _WIDE and any(map(is_narrow, node.inputs)):
            assert isinstance(operation, Primitive)
            product = Primitive(operation.primitive, {**operation.params, "preferred_element_type": _WIDE})
            nodes.append(Node(product, tuple(read(value, "bfloat16") for value in node.inputs), node.outputs))
            continue
        operands = tuple(read(value, reader=node if node in reducing else None) for value in node.inputs)
        nodes.append(Node(operation, operands, node.outputs))
        if (
            _is_local(node)
            and node not in reducing
            and node.name not in _IN_FLOAT32
            and node.output.dtype == _WIDE
            and any(is_narrow(value) and value.size == node.output.size for value in node.inputs)
        ):
            reader = uses.only_reader(node.output)
            if reader is not None and (_is_local(reader) or reader in last):  # in the same loop, or in float32
                within.add(node.output)
                continue
            stored[node.output] = Value(node.output.shape, _NARROW)
            nodes.append(Node(Cast("bfloat16"), node.outputs, (stored[node.output],)))
    results = tuple(map(read, graph.outputs))
    return Graph(graph.inputs, tuple(nodes), results)


def _is_local(node: Node) -> bool:
    """Whether each element of the result is computed from the same element of the operands, in order."""
    return is_elementwise(node) or isinstance(view_of(node), Reshape)


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


def _reducing(graph: Graph, uses: Uses) -> set[Node]:
    """The reductions, and elementwise operations whose results only they read, such as the squares of a variance."""
    found: set[Node] = set()

    def only_they_read(value: Value) -> bool:
        return not uses.is_result(value) and found.issuperset(uses.readers(value))

    for node in reversed(graph.nodes):
        if node.name.startswith("reduce_") or (_is_local(node) and only_they_read(node.output)):
            found.add(node)
    return found
