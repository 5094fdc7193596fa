"""Pass: maxima and sums over windows are computed along one dimension after another."""

import dataclasses

import jax

from cambrian.models.graph.graph import Graph, Node, rewritten
from cambrian.models.lowerings.pooling import pool

_KINDS = {"reduce_window_max": "max", "reduce_window_sum": "sum"}
_LARGEST = 16  # size of a window along a dimension: larger ones would be as many operations


@dataclasses.dataclass(frozen=True, slots=True)
class Pool:
    """The maximum or sum of each window.

    Attributes:
      kind: max or sum.
      sizes, strides, padding: of the windows, along each dimension.
      dtype: dtype of the result.
    """

    kind: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dtype: str
    name = "pool"

    def __call__(self, array: jax.Array) -> list[jax.Array]:
        return [pool(array, self.sizes, self.strides, self.padding, self.kind).astype(self.dtype)]


def max_pool_of(node: Node) -> Pool | None:
    """The operation of a node that is a max pooling; None for any other node."""
    return node.operation if isinstance(node.operation, Pool) and node.operation.kind == "max" else None


def find_poolings(graph: Graph) -> Graph:
    """Replaces poolings."""
    return rewritten(graph, _replacement)


def _replacement(node: Node) -> list[Node] | None:
    if node.name not in _KINDS or str(node.output.dtype) not in ("float32", "bfloat16"):
        return None
    sizes, strides, padding = (node.params[name] for name in ("window_dimensions", "window_strides", "padding"))
    dilations = {*(node.params["base_dilation"] or ()), *(node.params["window_dilation"] or ())}
    padding = tuple((int(before), int(after)) for before, after in padding)
    if 0 in node.output.shape or not dilations <= {1} or max(sizes) > _LARGEST or min(map(min, padding)) < 0:
        return None
    operation = Pool(_KINDS[node.name], tuple(sizes), tuple(strides), padding, str(node.output.dtype))
    return [Node(operation, node.inputs, node.outputs)]
