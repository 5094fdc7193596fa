"""Pass: float32 activations and kernels in bfloat16, and float32 where rounding would show.

Convolutions take and give bfloat16 and accumulate in float32. Chains of elementwise operations compute in float32, on
operands and with results that are stored in bfloat16. Products of two activations take bfloat16 and give float32. In
float32 stay reductions with everything that is no larger than their results (the statistics of a normalisation),
exponentials with what they are divided by (softmax), and the last layers.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cambrian.models.graph.constants import compact
from cambrian.models.graph.find_poolings import Pool
from cambrian.models.graph.fused_convolution import FusedConvolution, last_convolutions
from cambrian.models.graph.graph import Constant, Graph, Node, Operation, Primitive, Uses, Value, is_elementwise
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

    def __call__(self, array: jax.Array) -> list[jax.Array]:
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
    narrowing = _Narrowing(graph)
    for node in graph.nodes:
        narrowing.add(node)
    results = tuple(map(narrowing.read, graph.outputs))
    return Graph(graph.inputs, tuple(narrowing.nodes), results)


class _Narrowing:
    """Rewrites the nodes of a graph, one after another."""

    def __init__(self, graph: Graph):
        self.uses = Uses(graph)
        self.last = last_convolutions(graph)
        self.reducing = _reducing(graph, self.uses)
        self.nodes: list[Node] = []
        self.stored: dict[Value, Value] = {value: value for value in graph.inputs}  # value → how it is stored
        self.within: set[Value] = set()  # float32 values in a chain of elementwise operations that starts from bfloat16
        self.casts: dict[tuple[Value, str, Node | None], Value] = {}
        self.barriers: Counter[Value] = Counter()

    def read(self, value: Value, dtype: str = "", reader: Node | None = None) -> Value:
        """`value` in `dtype`, if it is floating point, or in the graph's; cast for `reader` alone, if one is given."""
        dtype, value = dtype or str(value.dtype), self.stored.get(value, value)
        if value.dtype not in (_WIDE, _NARROW) or str(value.dtype) == dtype:
            return value
        if isinstance(value, Constant):
            return Constant.of(_rounded(value.array, dtype))
        if (value, dtype, reader) not in self.casts:
            cast = self.casts[value, dtype, reader] = Value(value.shape, jnp.dtype(dtype))
            self.barriers[value] += reader is not None
            number = 0 if reader is None else self.barriers[value]
            self.nodes.append(Node(Cast(dtype, number), (value,), (cast,)))
        return self.casts[value, dtype, reader]

    def is_narrow(self, value: Value) -> bool:
        return value in self.within or self.stored.get(value, value).dtype == _NARROW

    def add(self, node: Node) -> None:
        """Adds the nodes that compute what a node of the graph computes."""
        operation, narrow = node.operation, any(map(self.is_narrow, node.inputs))
        if isinstance(operation, FusedConvolution) and operation.dtype == "float32":
            self.add_convolution(node, operation)
        elif narrow and isinstance(operation, Pool):
            self.add_narrow(dataclasses.replace(operation, dtype="bfloat16"), node)
        elif narrow and _moves(node) and not self.within.intersection(node.inputs):
            is_moved = node.name not in _COMPARE and not isinstance(view_of(node), Reshape)
            self.add_narrow(Bits(operation) if is_moved else operation, node)
        elif narrow and node.name == "dot_general" and node.output.dtype == _WIDE:
            assert isinstance(operation, Primitive)
            product = Primitive(operation.primitive, {**operation.params, "preferred_element_type": _WIDE})
            self.nodes.append(Node(product, self.read_narrow(node.inputs), node.outputs))
        else:
            self.add_wide(node)

    def add_convolution(self, node: Node, operation: FusedConvolution) -> None:
        dtype = "float32" if node in self.last else "bfloat16"
        images, kernel, bias, *residual = node.inputs
        operands = (self.read(images, dtype), kernel, bias, *(self.read(value, dtype) for value in residual))
        output = self.stored[node.output] = Value(node.output.shape, jnp.dtype(dtype))
        self.nodes.append(Node(dataclasses.replace(operation, dtype=dtype, out_dtype=dtype), operands, (output,)))

    def add_narrow(self, operation: Operation, node: Node) -> None:
        """Adds an operation that takes and gives bfloat16."""
        operands = self.read_narrow(node.inputs)
        outputs = [Value(each.shape, _NARROW if each.dtype == _WIDE else each.dtype) for each in node.outputs]
        self.stored.update(zip(node.outputs, outputs, strict=True))
        self.nodes.append(Node(operation, operands, tuple(outputs)))

    def read_narrow(self, values: Sequence[Value]) -> tuple[Value, ...]:
        return tuple(self.read(value, "bfloat16") for value in values)

    def add_wide(self, node: Node) -> None:
        """Adds a node as it is; the end of a chain of elementwise operations is stored in bfloat16."""
        reader = node if node in self.reducing else None
        self.nodes.append(
            Node(node.operation, tuple(self.read(value, reader=reader) for value in node.inputs), node.outputs)
        )
        is_in_chain = (
            _is_local(node)
            and node not in self.reducing
            and node.name not in _IN_FLOAT32
            and node.output.dtype == _WIDE
            and any(self.is_narrow(value) and value.size == node.output.size for value in node.inputs)
        )
        if not is_in_chain:
            return
        following = self.uses.only_reader(node.output)
        if following is not None and (_is_local(following) or following in self.last):
            self.within.add(node.output)
        else:
            stored = self.stored[node.output] = Value(node.output.shape, _NARROW)
            self.nodes.append(Node(Cast("bfloat16"), node.outputs, (stored,)))


def _moves(node: Node) -> bool:
    return view_of(node) is not None or node.name in _MOVES or node.name in _COMPARE


def _is_local(node: Node) -> bool:
    """Whether each element of the result is computed from the same element of the operands, in order."""
    return is_elementwise(node) or isinstance(view_of(node), Reshape)


def _reducing(graph: Graph, uses: Uses) -> set[Node]:
    """The reductions, and elementwise operations whose results only they read, such as the squares of a variance."""
    found: set[Node] = set()

    def only_they_read(value: Value) -> bool:
        return not uses.is_result(value) and found.issuperset(uses.readers(value))

    for node in reversed(graph.nodes):
        if node.name.startswith("reduce_") or (_is_local(node) and only_they_read(node.output)):
            found.add(node)
    return found


def _rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """Finite numbers stay finite: the least float32, which masks logits, would become -inf in bfloat16."""
    small, largest = compact(array), float(jnp.finfo(dtype).max)
    bounded = np.where(np.isfinite(small), np.clip(small, -largest, largest), small)
    return np.broadcast_to(bounded.astype(dtype), array.shape)
