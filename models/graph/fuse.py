"""Passes: what follows a convolution is folded into its kernel and bias, or computed in the same operation."""

import dataclasses
from collections.abc import Callable

import numpy as np

from cambrian.models.graph.activation import activation_after
from cambrian.models.graph.constants import compact
from cambrian.models.graph.fused_convolution import FusedConvolution, weights
from cambrian.models.graph.graph import Constant, Graph, Node, Uses, Value

Fused = tuple[Node, list[Node]]  # the new convolution, and the nodes after the old one that it stands for


def fuse(graph: Graph) -> Graph:
    """Folds affine operations, then fuses residuals and activations."""
    for find in (_affine, _residual, _activation):
        graph = _each_convolution(graph, find)
    return graph


def _each_convolution(graph: Graph, find: Callable[[Node, FusedConvolution, Uses], Fused | None]) -> Graph:
    uses, replaced, gone = Uses(graph), {}, set()
    for node in graph.nodes:
        if node in gone or not isinstance(node.operation, FusedConvolution):
            continue
        found = find(node, node.operation, uses)
        if found is None:
            continue
        fused, absorbed = found
        if gone.intersection(absorbed) or absorbed[-1] in replaced:
            continue
        gone.update((node, *absorbed))
        replaced[absorbed[-1]] = fused  # where all of its operands have been computed
    nodes = [replaced.get(node, node) for node in graph.nodes if node not in gone or node in replaced]
    return Graph(graph.inputs, tuple(nodes), graph.outputs)


def _affine(node: Node, operation: FusedConvolution, uses: Uses) -> Fused | None:
    """Folds affine operations with constants for each channel, such as a batch norm, into kernel and bias.

    Where a network computes in bfloat16, normalisations compute in float32: the conversions are folded, too.
    """
    if operation.residual or operation.activation:
        return None
    kernel, bias = weights(node)
    scale, shift = np.ones(operation.out_channels), bias.array.astype(np.float64)
    output, absorbed = node.output, []
    # `1 / (1 + exp(-x))` is the sigmoid of x, not an exponential of what -1 was folded into.
    while activation_after(output, uses) is None and (reader := uses.only_reader(output)) is not None:
        step = _scale_and_shift(reader, output, operation.out_channels)
        if step is None and operation.dtype == "bfloat16" and _converts_float(reader):
            step = np.ones(1), np.zeros(1)
        if step is None:
            break
        scale, shift = scale * step[0], shift * step[0] + step[1]
        output = reader.output
        absorbed.append(reader)
    if not absorbed:
        return None
    operands = (
        node.inputs[0],
        kernel if (scale == 1).all() else Constant.of(kernel.array * scale.astype(np.float32), kernel.path),
        Constant.of(shift.astype(np.float32)),
    )
    return Node(dataclasses.replace(operation, out_dtype=str(output.dtype)), operands, (output,)), absorbed


def _converts_float(node: Node) -> bool:
    return node.name == "convert_element_type" and str(node.output.dtype) in ("bfloat16", "float32")


def _scale_and_shift(node: Node, value: Value, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The node as `value * scale + shift` for each channel; None if it isn't of that form."""
    if [(output.shape, output.dtype) for output in node.outputs] != [(value.shape, value.dtype)]:
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.name == "neg":
        return -one, zero
    if node.name not in ("add", "sub", "mul", "div"):
        return None
    left, right = node.inputs
    other = right if left is value else left
    constant = _by_channel(other, channels) if other is not value else None
    if constant is None:
        return None
    match node.name:
        case "add":
            return one, constant
        case "mul":
            return constant, zero
        case "sub":
            return (one, -constant) if left is value else (-one, constant)
    return (1 / constant, zero) if left is value and constant.all() else None


def _by_channel(value: Value, channels: int) -> np.ndarray | None:
    """The channels of a finite constant that is the same for all pixels, in float64; None for anything else."""
    if not isinstance(value, Constant) or not isinstance(value.array, np.ndarray):
        return None
    small = compact(value.array)
    if not np.isfinite(small).all():  # infinity times a kernel isn't infinity times its products
        return None
    if small.size == 1:
        return np.full(channels, small.reshape(()), np.float64)
    is_vector = small.size == channels and small.shape[-1] == channels
    return small.reshape(channels).astype(np.float64) if is_vector else None


def _residual(node: Node, operation: FusedConvolution, uses: Uses) -> Fused | None:
    """Adds another value of the same shape in the same operation."""
    adding = uses.only_reader(node.output)
    if adding is None or adding.name != "add" or operation.residual or operation.activation:
        return None
    left, right = adding.inputs
    other = right if left is node.output else left
    if other is node.output or isinstance(other, Constant):
        return None
    if (other.shape, other.dtype) != (node.output.shape, node.output.dtype):
        return None
    fused = dataclasses.replace(operation, residual=True)
    return Node(fused, (*node.inputs, other), adding.outputs), [adding]


def _activation(node: Node, operation: FusedConvolution, uses: Uses) -> Fused | None:
    """Applies the activation that follows in the same operation."""
    if operation.activation:
        return None
    found = activation_after(node.output, uses)
    if found is None:
        return None
    name, absorbed = found
    return Node(dataclasses.replace(operation, activation=name), node.inputs, absorbed[-1].outputs), absorbed
