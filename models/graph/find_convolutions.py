"""Pass: convolutions and dense layers with constant kernels become fused convolutions on (N, H, W, C).

Whatever their dimension numbers, they are the same operation: a convolution along one axis has one row, along three
axes its taps in depth are channels, and a dense layer, however an einsum writes it, is a 1×1 convolution. Views around
it keep the function's own layouts.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from cambrian.models.graph.depth_taps import DepthTaps
from cambrian.models.graph.fused_convolution import FusedConvolution
from cambrian.models.graph.graph import Constant, Graph, Node, Value, rewritten
from cambrian.models.graph.transposed_convolution import Crop, Phases, kernel_of_phases
from cambrian.models.graph.views import Reshape, Transpose, apply_view
from cambrian.models.lowerings import POINTWISE, Window
from cambrian.models.lowerings.lowering import Padding

_DTYPES = ("float32", "bfloat16")


def find_convolutions(graph: Graph) -> Graph:
    """Replaces convolutions and dense layers."""
    return rewritten(graph, _replacement)


def _replacement(node: Node) -> list[Node] | None:
    match node.name:
        case "conv_general_dilated":
            return _convolution(node)
        case "dot_general":
            return _dense(node)
    return None


def _convolution(node: Node) -> list[Node] | None:
    images, kernel = node.inputs
    if not isinstance(kernel, Constant):
        return None
    params, numbers = node.params, node.params["dimension_numbers"]
    padding = [(int(before), int(after)) for before, after in params["padding"]]  # Keras has NumPy's integers
    axes = len(padding)
    groups, upsampling = params["feature_group_count"], {*params["lhs_dilation"]}
    supported = (
        _are_floats(node)
        and (axes in (1, 2) or (axes == 3 and groups == 1 and upsampling == {1}))
        and params["batch_group_count"] == 1
        and (min(min(pad) for pad in padding) >= 0 or upsampling != {1})
        and 0 not in images.shape + node.output.shape
    )
    if not supported:
        return None
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    nodes: list[Node] = []
    taken = apply_view(Transpose((lhs[0], *lhs[2:], lhs[1])), images, nodes)
    weights = np.transpose(kernel.array, (*rhs[2:], rhs[1], rhs[0]))
    by_axis = [*zip(weights.shape, params["window_strides"], padding, params["rhs_dilation"], strict=False)]
    dilated: Any = tuple(params["lhs_dilation"])
    if axes == 1:  # one row
        taken = apply_view(Reshape((taken.shape[0], 1, *taken.shape[1:])), taken, nodes)
        weights, by_axis, dilated = weights[np.newaxis], [(1, 1, (0, 0), 1), *by_axis], (1, *dilated)
    elif axes == 3:
        depth, *by_axis = by_axis
        taps = DepthTaps.of(taken.shape[1], *depth)
        volumes, taken = taken, Value(taps.shape(taken.shape), taken.dtype)
        nodes.append(Node(taps, (volumes,), (taken,)))
        weights = taps.kernel(weights)
    window = Window(*zip(*by_axis, strict=True))
    if upsampling == {1}:
        made = _fused(taken, Constant.of(weights, kernel.path), window, groups, node, nodes)
    elif window.stride == window.dilation == (1, 1) and groups == 1:
        made = _transposed(taken, Constant.of(weights, kernel.path), window.padding, dilated, node, nodes)
    else:
        made = None
    if made is None:
        return None
    order = (out[0], *out[2:], out[1])
    made = apply_view(Reshape(tuple(node.output.shape[axis] for axis in order)), made, nodes)
    return _renamed(apply_view(Transpose(tuple(np.argsort(order).tolist())), made, nodes), node, nodes)


def _transposed(
    images: Value, kernel: Constant, padding: Padding, dilation: tuple[int, int], node: Node, nodes: list[Node]
) -> Value | None:
    """The convolution of images with `dilation - 1` zeros between their pixels."""
    lengths = images.shape[1:3]
    found = [
        Phases.of(length, size, step, pad)
        for length, size, step, pad in zip(lengths, kernel.shape[:2], dilation, padding, strict=True)
    ]
    rows, columns = found
    if rows is None or columns is None:
        return None
    by_phase = Constant.of(kernel_of_phases(kernel.array, rows, columns, dilation), kernel.path)
    window = Window((rows.taps, columns.taps), (1, 1), (rows.padding, columns.padding))
    made = _fused(images, by_phase, window, 1, node, nodes)
    samples, channels = images.shape[0], kernel.shape[3]
    made = apply_view(Reshape((samples, rows.outputs, columns.outputs, *dilation, channels)), made, nodes)
    made = apply_view(Transpose((0, 1, 3, 2, 4, 5)), made, nodes)
    full = (rows.outputs * dilation[0], columns.outputs * dilation[1])
    made = apply_view(Reshape((samples, *full, channels)), made, nodes)
    kept = tuple(
        (length - 1) * step + 1 + sum(pad) - size + 1
        for length, step, pad, size in zip(lengths, dilation, padding, kernel.shape[:2], strict=True)
    )
    if kept == full:
        return made
    cropped = Value((samples, *kept, channels), made.dtype)
    nodes.append(Node(Crop(cropped.shape), (made,), (cropped,)))
    return cropped


def _dense(node: Node) -> list[Node] | None:
    left, right = node.inputs
    (left_contract, right_contract), (batch, _) = node.params["dimension_numbers"]
    if isinstance(left, Constant) == isinstance(right, Constant) or not _are_floats(node) or batch:
        return None
    if not isinstance(node.params["precision"], lax.Precision | tuple | None):  # convolutions take no preset
        return None
    kernel_first = isinstance(left, Constant)
    if kernel_first:
        left, right, left_contract, right_contract = right, left, right_contract, left_contract
    assert isinstance(right, Constant)
    if not left_contract or 0 in left.shape + right.shape:
        return None
    left_free, right_free = _others(left.shape, left_contract), _others(right.shape, right_contract)
    nodes: list[Node] = []
    taken = apply_view(Transpose((*left_free, *left_contract)), left, nodes)
    weights = np.transpose(right.array, (*right_contract, *right_free))
    channels = math.prod(left.shape[axis] for axis in left_contract)
    free = [left.shape[axis] for axis in left_free]
    pixels = tuple(free) if len(free) == 3 else (math.prod(free[:1]), 1, math.prod(free[1:]))
    taken = apply_view(Reshape((*pixels, channels)), taken, nodes)
    kernel = Constant.of(weights.reshape(1, 1, channels, -1), right.path)
    made = _fused(taken, kernel, POINTWISE, 1, node, nodes)
    made = apply_view(Reshape((*free, *[right.shape[axis] for axis in right_free])), made, nodes)
    if kernel_first:  # whose dimensions come first in the result
        axes = range(len(made.shape))
        made = apply_view(Transpose((*axes[len(free) :], *axes[: len(free)])), made, nodes)
    return _renamed(made, node, nodes)


def _are_floats(node: Node) -> bool:
    """Whether lowerings compute in the dtypes: operands of one dtype, and results of the same or in float32."""
    dtypes = {str(value.dtype) for value in node.inputs}
    return len(dtypes) == 1 and dtypes <= {*_DTYPES} and str(node.output.dtype) in {*dtypes, "float32"}


def _others(shape: Sequence[int], axes: Sequence[int]) -> list[int]:
    return [axis for axis in range(len(shape)) if axis not in axes]


def _fused(images: Value, kernel: Constant, window: Window, groups: int, node: Node, nodes: list[Node]) -> Value:
    """Appends the convolution that stands for `node`, with no bias yet; returns its output."""
    dtypes = str(images.dtype), str(node.output.dtype)
    precision = node.params["precision"]
    operation = FusedConvolution(images.shape, kernel.shape[3], window, *dtypes, groups, precision=precision)
    output = Value(operation.out_shape, node.output.dtype)
    bias = np.zeros(kernel.shape[3], np.float32)
    weights = Constant.of(kernel.array.astype(np.float32, copy=False), kernel.path)
    nodes.append(Node(operation, (images, weights, Constant.of(bias)), (output,)))
    return output


def _renamed(value: Value, node: Node, nodes: list[Node]) -> list[Node]:
    """Makes the last of the new nodes give the replaced node's output."""
    last = nodes[-1]
    assert last.output is value
    return [*nodes[:-1], Node(last.operation, last.inputs, node.outputs)]
