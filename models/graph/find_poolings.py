"""Pass: maxima and sums over windows of images (N, H, W, C) are computed row by row, then column by column."""

import dataclasses

import jax

from cambrian.models.graph.graph import Graph, Node, rewritten
from cambrian.models.lowerings import Window
from cambrian.models.lowerings.pooling import pool

_KINDS = {"reduce_window_max": "max", "reduce_window_sum": "sum"}
_LARGEST = 16  # size of a window: larger ones would be as many operations


@dataclasses.dataclass(frozen=True, slots=True)
class Pool:
    """The maximum or sum of each window, in any floating-point dtype.

    Attributes:
      kind: max or sum.
      window: without dilation.
      dtype: dtype of the result.
    """

    kind: str
    window: Window
    dtype: str
    name = "pool"

    def __call__(self, *arrays: jax.Array) -> list[jax.Array]:
        (images,) = arrays
        return [pool(images, self.window, self.kind).astype(self.dtype)]


def find_poolings(graph: Graph) -> Graph:
    """Replaces poolings of images."""
    return rewritten(graph, _replacement)


def _replacement(node: Node) -> list[Node] | None:
    if node.name not in _KINDS or len(node.inputs[0].shape) != 4:
        return None
    if str(node.output.dtype) not in ("float32", "bfloat16"):
        return None
    sizes, strides, padding = (node.params[name] for name in ("window_dimensions", "window_strides", "padding"))
    dilations = {*(node.params["base_dilation"] or ()), *(node.params["window_dilation"] or ())}
    only_pixels = {sizes[0], sizes[3], strides[0], strides[3], *dilations} == {1} and {*padding[0], *padding[3]} == {0}
    if not only_pixels or max(sizes) > _LARGEST:
        return None
    (top, bottom), (left, right) = padding[1:3]
    window = Window(tuple(sizes[1:3]), tuple(strides[1:3]), ((int(top), int(bottom)), (int(left), int(right))))
    return [Node(Pool(_KINDS[node.name], window, str(node.output.dtype)), node.inputs, node.outputs)]
