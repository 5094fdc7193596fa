"""Pass: channels rescaled, so that one 8-bit scale for a whole kernel and one for a whole activation suffice.

A ReLU commutes with positive factors. So each channel of an activation may be divided by a factor of its own if the
kernels that make it are divided by it and those that read it are multiplied. The factors balance the ranges of the
channels of kernels and activations on both sides (cross-layer equalisation, Nagel et al., arXiv:1906.04721, section
4.1). Activations that are added to each other, or pooled, share their factors. Results stay the same up to rounding.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from cambrian.models.graph.find_poolings import max_pool_of
from cambrian.models.graph.fused_convolution import FusedConvolution, weights
from cambrian.models.graph.graph import Constant, Graph, Node, Uses, Value, rewritten

_ROUNDS = 10
_FACTORS = (1e-3, 1e3)  # beyond these a channel is as good as off


def equalize(graph: Graph, largest: Mapping[Value, np.ndarray]) -> Graph:
    """Rescales the channels of activations that only convolutions and dense layers make and read.

    Args:
      graph: float32 graph, as `cambrian.models.graph.passes.optimized` returns it.
      largest: the largest value of each channel (C,) of activations that convolutions make.
    """
    shared = _shared_factors(graph)
    convolutions = [node for node in graph.nodes if _is_scalable(node)]
    ranges = {node: _ranges(node) for node in convolutions}  # (C_in, C_out)
    factors = {value: np.ones(value.shape[-1]) for value in shared.values()}

    def factor(value: Value) -> np.ndarray:
        return factors[shared[value]] if value in shared else np.ones(value.shape[-1])

    def scaled(node: Node) -> np.ndarray:
        return ranges[node] * factor(node.inputs[0])[:, None] / factor(node.output)

    for _ in range(_ROUNDS):
        for one in factors:
            made, read = (np.zeros(one.shape[-1]) for _ in range(2))
            for node in convolutions:  # each range as a share of the whole kernel's or activation's
                if shared.get(node.output) is one:
                    whole = scaled(node)
                    made = np.maximum(made, whole.max(axis=0) / (whole.max() or 1))
                    if node.output in largest:
                        values = largest[node.output] / factors[one]
                        made = np.maximum(made, values / (values.max() or 1))
                if shared.get(node.inputs[0]) is one:
                    whole = scaled(node)
                    read = np.maximum(read, whole.max(axis=1) / (whole.max() or 1))
            step = np.sqrt(np.maximum(made, 1e-6) / np.maximum(read, 1e-6))
            factors[one] = np.clip(factors[one] * step / np.exp(np.log(step).mean()), *_FACTORS)

    def rewrite(node: Node) -> list[Node] | None:
        if node not in ranges:
            return None
        images, _, _, *residual = node.inputs
        kernel, bias = weights(node)
        read, made = factor(images), factor(node.output)
        by_channel = read / made if kernel.shape[2] == 1 else read[:, None] / made
        new_kernel = (kernel.array * by_channel).astype(np.float32)
        new_bias = (bias.array / made).astype(np.float32)
        operands = (images, Constant.of(new_kernel, kernel.path), Constant.of(new_bias, bias.path), *residual)
        return [Node(node.operation, operands, node.outputs)]

    return rewritten(graph, rewrite)


def without_bounds(graph: Graph) -> Graph:
    """Replaces each ReLU6 of a convolution by a ReLU, which commutes with factors: results change where it bounds."""

    def rewrite(node: Node) -> list[Node] | None:
        if not isinstance(node.operation, FusedConvolution) or node.operation.activation != "RELU6":
            return None
        return [Node(dataclasses.replace(node.operation, activation="RELU"), node.inputs, node.outputs)]

    return rewritten(graph, rewrite)


def _ranges(node: Node) -> np.ndarray:
    largest = np.abs(weights(node)[0].array).max(axis=(0, 1))
    assert isinstance(node.operation, FusedConvolution)
    return np.diag(largest[0]) if node.operation.groups > 1 else largest


def _is_scalable(node: Node) -> bool:
    operation = node.operation
    return (
        isinstance(operation, FusedConvolution)
        and operation.dtype == "float32"
        and (operation.groups == 1 or operation.is_depthwise)
        and operation.activation in (None, "RELU")
    )


def _pools_channels_apart(node: Node) -> bool:
    pool = max_pool_of(node)
    return pool is not None and (pool.sizes[-1], pool.strides[-1], pool.padding[-1]) == (1, 1, (0, 0))


def _shared_factors(graph: Graph) -> dict[Value, Value]:
    """Activation → the activation whose factors it takes, of those that may be rescaled."""
    uses, shared = Uses(graph), {}

    def root(value: Value) -> Value:
        while shared[value] is not value:
            value = shared[value]
        return value

    made = [node for node in graph.nodes if _is_scalable(node) or _pools_channels_apart(node)]
    for node in made:
        shared[node.output] = node.output
    fixed: set[Value] = set()
    for node in made:
        tied = node.inputs[3:] if _is_scalable(node) else node.inputs[:1]
        for value in tied:
            if value in shared:
                shared[root(value)] = root(node.output)
            else:
                fixed.add(node.output)
        readers = uses.readers(node.output)
        if uses.is_result(node.output) or not all(reader in made for reader in readers):
            fixed.add(node.output)
    roots = {value: root(value) for value in shared}
    not_scaled = {roots[value] for value in fixed}
    return {value: one for value, one in roots.items() if one not in not_scaled}
