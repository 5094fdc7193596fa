"""Transpositions and reshapes: operations that move no information, which passes move out of the way."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from cambrian.models.graph.graph import Constant, Node, Primitive, Value


@dataclasses.dataclass(frozen=True, slots=True)
class Transpose:
    """Dimension i of the result is dimension `permutation[i]` of the operand."""

    permutation: tuple[int, ...]
    name = "transpose"

    def __call__(self, array: jax.Array) -> list[jax.Array]:
        return [lax.transpose(array, self.permutation)]

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape[axis] for axis in self.permutation)

    def inverse(self, shape: Sequence[int]) -> "Transpose":
        """The transposition that undoes this one of an operand of `shape`."""
        return Transpose(tuple(np.argsort(self.permutation).tolist()))


@dataclasses.dataclass(frozen=True, slots=True)
class Reshape:
    """The operand's elements, in order, in another shape."""

    sizes: tuple[int, ...]
    name = "reshape"

    def __call__(self, array: jax.Array) -> list[jax.Array]:
        return [lax.reshape(array, self.sizes)]

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.sizes

    def inverse(self, shape: Sequence[int]) -> "Reshape":
        """The reshape that undoes this one of an operand of `shape`."""
        return Reshape(tuple(shape))


View = Transpose | Reshape


def view_of(node: Node) -> View | None:
    """The view that a node is, if its primitive is one; None otherwise."""
    if isinstance(node.operation, (Transpose, Reshape)):
        return node.operation
    if not isinstance(node.operation, Primitive):
        return None
    if node.name == "transpose":
        return Transpose(tuple(node.params["permutation"]))
    adds_ones = node.name == "broadcast_in_dim" and len(node.inputs) == 1 and node.output.size == node.inputs[0].size
    if adds_ones or node.name in ("squeeze", "expand_dims") or (node.name == "reshape" and len(node.inputs) == 1):
        return Reshape(node.output.shape)
    return None


def apply_view(view: View, value: Value, nodes: list[Node]) -> Value:
    """Returns the view of a value; appends the node that makes it, unless it is the value itself or a constant."""
    if is_identity(view, value):
        return value
    if isinstance(value, Constant):
        return Constant.of(array_view(view, value.array))
    result = Value(view.shape(value.shape), value.dtype)
    nodes.append(Node(view, (value,), (result,)))
    return result


def array_view(view: View, array: Any) -> np.ndarray:
    """Applies a view to an array on the host; dimensions that it keeps stay broadcast."""
    if isinstance(view, Transpose):
        return np.transpose(array, view.permutation)
    kept = 0
    while (
        kept < min(array.ndim, len(view.sizes)) and array.strides[kept] == 0 and array.shape[kept] == view.sizes[kept]
    ):
        kept += 1
    rest = array[(0,) * kept].reshape(view.sizes[kept:])
    return np.broadcast_to(rest, view.sizes)


def is_identity(view: View, value: Value) -> bool:
    """Whether a view of `value` is the value itself."""
    if isinstance(view, Transpose):
        return view.permutation == tuple(range(len(view.permutation)))
    return view.sizes == value.shape
