"""Pass: views move towards the results until they meet their inverse and vanish.

They move through elementwise operations, reductions, poolings and dense layers. So a network that computes in NCHW has
a transposition at its input and one before its head, and none between; and a transformer's tokens keep the shape of the
images that they come from.
"""

import dataclasses

import numpy as np

from cambrian.models.graph.fused_convolution import FusedConvolution
from cambrian.models.graph.graph import Constant, Graph, Node, Primitive, Value, is_elementwise, without_dead_nodes
from cambrian.models.graph.views import Reshape, Transpose, View, apply_view, array_view, is_identity, view_of

_REDUCTIONS = ("reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum")
# Primitives whose parameters have an entry for each dimension.
_BY_DIMENSION = {
    "pad": ("padding_config",),
    "slice": ("start_indices", "limit_indices", "strides"),
    **dict.fromkeys(
        ("reduce_window_max", "reduce_window_min", "reduce_window_sum"),
        ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation"),
    ),
}


def move_views(graph: Graph) -> Graph:
    """Moves and cancels views."""
    views: dict[Value, tuple[View, Value]] = {}  # value → the view that it is, and of what
    same: dict[Value, Value] = {}  # value → the value that it equals
    nodes: list[Node] = []

    def view_at(source: Value, view: View, output: Value) -> None:
        """Records and makes `output`, a view of `source`; composed with the view that `source` is."""
        source = same.get(source, source)
        if source in views:
            inner, source_of = views[source]
            composed = _composed(inner, view)
            if composed is not None:
                source, view = source_of, composed
        if is_identity(view, source):
            same[output] = source
            return
        views[output] = (view, source)
        nodes.append(Node(view, (source,), (output,)))

    def emit(node: Node, back: frozenset[View] = frozenset()) -> None:
        """Appends a node; `back` are the views that would move it to where it came from."""
        node = Node(node.operation, tuple(same.get(value, value) for value in node.inputs), node.outputs)
        if (view := view_of(node)) is not None:
            view_at(node.inputs[0], view, node.output)
        elif (moved := _moved(node, views, back)) is not None:
            made, view, before = moved
            for each in before:
                emit(each)
            emit(made, back | {view.inverse(made.output.shape)})  # other views may stand before this one
            view_at(made.output, view, node.output)
        else:
            nodes.append(node)

    for node in graph.nodes:
        emit(node)
    outputs = tuple(same.get(value, value) for value in graph.outputs)
    return without_dead_nodes(Graph(graph.inputs, tuple(nodes), outputs))


def _moved(
    node: Node, views: dict[Value, tuple[View, Value]], back: frozenset[View]
) -> tuple[Node, View, list[Node]] | None:
    """The node computed before the view of its operands; that view; and nodes that make its other operands."""
    if is_elementwise(node):
        return _moved_elementwise(node, views, back)
    if not node.inputs or node.inputs[0] not in views:
        return None
    view, source = views[node.inputs[0]]
    if isinstance(node.operation, FusedConvolution):
        return _moved_dense(node, node.operation, view, source)
    if not isinstance(node.operation, Primitive):
        return None
    if isinstance(view, Reshape):
        return _moved_reduction(node, node.operation, source)
    permutation, params = view.permutation, dict(node.params)
    if node.name in _REDUCTIONS:
        kept = [axis for axis in range(len(permutation)) if axis not in params["axes"]]
        params["axes"] = tuple(sorted(permutation[axis] for axis in params["axes"]))
        remaining = sorted(permutation[axis] for axis in kept)
        after = Transpose(tuple(remaining.index(permutation[axis]) for axis in kept))
    elif node.name in _BY_DIMENSION:
        inverse = view.inverse(()).permutation
        for name in _BY_DIMENSION[node.name]:
            if params[name] is not None:
                params[name] = tuple(params[name][axis] for axis in inverse)
        after = view
    else:
        return None
    output = Value(after.inverse(()).shape(node.output.shape), node.output.dtype)
    return Node(Primitive(node.operation.primitive, params), (source, *node.inputs[1:]), (output,)), after, []


def _moved_dense(
    node: Node, operation: FusedConvolution, view: View, source: Value
) -> tuple[Node, View, list[Node]] | None:
    """A dense layer, computed on the pixels as they lie before a reshape that keeps the channels."""
    keeps_channels = isinstance(view, Reshape) and len(source.shape) == 4 and source.shape[3] == operation.in_shape[3]
    if not operation.is_dense or not keeps_channels:
        return None
    moved = dataclasses.replace(operation, in_shape=source.shape)
    output = Value(moved.out_shape, node.output.dtype)
    return Node(moved, (source, *node.inputs[1:]), (output,)), Reshape(node.output.shape), []


def _moved_reduction(node: Node, operation: Primitive, source: Value) -> tuple[Node, View, list[Node]] | None:
    """A reduction over the last dimensions, computed before a reshape that keeps them."""
    shape, axes = node.inputs[0].shape, node.params.get("axes", ())
    count = len(axes)
    is_last = count and sorted(axes) == list(range(len(shape) - count, len(shape)))
    if node.name not in _REDUCTIONS or not is_last or source.shape[-count:] != shape[-count:]:
        return None
    kept = len(source.shape) - count
    output = Value(source.shape[:kept], node.output.dtype)
    reduction = Primitive(operation.primitive, {**operation.params, "axes": tuple(range(kept, kept + count))})
    return Node(reduction, (source,), (output,)), Reshape(node.output.shape), []


def _moved_elementwise(
    node: Node, views: dict[Value, tuple[View, Value]], back: frozenset[View]
) -> tuple[Node, View, list[Node]] | None:
    viewed = [value for value in node.inputs if value.shape == node.output.shape and value in views]
    viewed = [value for value in viewed if views[value][0] not in back]
    if not viewed:
        return None
    # The latest: what a layer has just made is added where it lies, and fuses.
    view, source = views[next(value for value in reversed(views) if value in viewed)]
    inverse = view.inverse(source.shape)
    made = {of: value for value, of in views.items()}

    def undone(value: Value) -> Value | None:
        """What `view` of makes `value`, if that is at hand."""
        if value in views and views[value][0] == view and views[value][1].shape == source.shape:
            return views[value][1]
        return made.get((inverse, value))

    full = [value for value in node.inputs if value.shape == node.output.shape and not isinstance(value, Constant)]
    to_copy = [value for value in full if undone(value) is None]
    if isinstance(view, Transpose) and 2 * len(to_copy) >= len(full):  # as many copies would be made as vanish
        return None
    before: list[Node] = []
    inputs = []
    for value in node.inputs:
        if (at_hand := undone(value)) is not None:
            inputs.append(at_hand)
        elif value.shape == () != node.output.shape:
            inputs.append(value)
        elif value.shape == node.output.shape or isinstance(view, Transpose):  # dimensions of size 1 are broadcast
            inputs.append(apply_view(inverse, value, before))
        elif isinstance(value, Constant):
            inputs.append(Constant.of(array_view(inverse, np.broadcast_to(value.array, node.output.shape))))
        elif value.shape == (*node.output.shape[:-1], 1) and source.shape[-1:] == node.output.shape[-1:]:
            inputs.append(apply_view(Reshape((*source.shape[:-1], 1)), value, before))  # the same for all channels
        else:
            return None
    output = Value(source.shape, node.output.dtype)
    return Node(node.operation, tuple(inputs), (output,)), view, before


def _composed(first: View, then: View) -> View | None:
    if isinstance(first, Transpose) and isinstance(then, Transpose):
        return Transpose(tuple(first.permutation[axis] for axis in then.permutation))
    return then if isinstance(first, Reshape) and isinstance(then, Reshape) else None
