"""A traced function as a graph of operations on arrays, without nested calls."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

# Primitives that compute each element of their result from the same element of their operands.
_ELEMENTWISE = frozenset(
    """
    abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type cos cosh div eq erf erf_inv
    erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg nextafter not or
    pow rem round rsqrt select_n sign sin sinh sqrt square sub tan tanh xor
    """.split()  # noqa: SIM905
)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Value:
    """An array that a graph computes or takes; two values are the same only if they are one object."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Constant(Value):
    """A value known at build.

    Attributes:
      array: its value; broadcast dimensions have stride 0 and take no memory.
      path: where it lies in the parameters; empty for other constants.
    """

    array: np.ndarray
    path: str = ""

    @classmethod
    def of(cls, array: np.ndarray, path: str = "") -> "Constant":
        return cls(array.shape, array.dtype, array, path)


class Operation(Protocol):
    """What a node computes."""

    @property
    def name(self) -> str: ...

    def __call__(self, *arrays: Any) -> Sequence[jax.Array]: ...


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Primitive:
    """A primitive of JAX with its parameters, and whether it has side effects."""

    primitive: Any
    params: Mapping[str, Any]
    has_effects: bool = False

    @property
    def name(self) -> str:
        return self.primitive.name

    def __call__(self, *arrays: Any) -> Sequence[jax.Array]:
        results = self.primitive.bind(*arrays, **self.primitive.get_bind_params(self.params))
        return results if self.primitive.multiple_results else [results]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Node:
    """An operation applied to values."""

    operation: Operation
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @property
    def name(self) -> str:
        return self.operation.name

    @property
    def output(self) -> Value:
        """The only output."""
        (output,) = self.outputs
        return output

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters of a primitive; empty for other operations."""
        return self.operation.params if isinstance(self.operation, Primitive) else {}

    @property
    def has_effects(self) -> bool:
        return getattr(self.operation, "has_effects", False)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Nodes in an order of computation."""

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]

    def constants(self) -> list[Constant]:
        """The constants that nodes and outputs read, each once, in the order of their first use."""
        read = [value for node in self.nodes for value in node.inputs] + list(self.outputs)
        return list(dict.fromkeys(value for value in read if isinstance(value, Constant)))

    def evaluate(self, constants: Mapping[Constant, Any], inputs: Sequence[Any]) -> list[Any]:
        """Computes the outputs; traceable."""
        arrays: dict[Value, Any] = {**constants, **dict(zip(self.inputs, inputs, strict=True))}
        for node in self.nodes:
            results = node.operation(*[arrays[value] for value in node.inputs])
            arrays.update(zip(node.outputs, results, strict=True))
        return [arrays[value] for value in self.outputs]


class Uses:
    """Which nodes read and make each value of a graph."""

    def __init__(self, graph: Graph):
        self.makers = {value: node for node in graph.nodes for value in node.outputs}
        self._readers: dict[Value, list[Node]] = {}
        for node in graph.nodes:
            for value in dict.fromkeys(node.inputs):
                self._readers.setdefault(value, []).append(node)
        self._results = frozenset(graph.outputs)

    def readers(self, value: Value) -> list[Node]:
        return self._readers.get(value, [])

    def only_reader(self, value: Value) -> Node | None:
        """The node that alone reads `value`; None if there are others, or if it is a result of the graph."""
        readers = self.readers(value)
        return readers[0] if len(readers) == 1 and not self.is_result(value) else None

    def is_result(self, value: Value) -> bool:
        return value in self._results


def is_elementwise(node: Node) -> bool:
    """Whether each element of the result is computed from the same element of the operands."""
    return isinstance(node.operation, Primitive) and node.name in _ELEMENTWISE


def without_dead_nodes(graph: Graph) -> Graph:
    """Removes nodes whose outputs nothing reads, except those with side effects."""
    live, kept = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if node.has_effects or any(value in live for value in node.outputs):
            live.update(node.inputs)
            kept.append(node)
    return Graph(graph.inputs, tuple(reversed(kept)), graph.outputs)


def rewritten(graph: Graph, rewrite: Callable[[Node], Iterable[Node] | None]) -> Graph:
    """Replaces each node by the nodes that `rewrite` returns for it; None keeps it. Outputs keep their values."""
    nodes: list[Node] = []
    for node in graph.nodes:
        replacement = rewrite(node)
        nodes += [node] if replacement is None else replacement
    return Graph(graph.inputs, tuple(nodes), graph.outputs)
