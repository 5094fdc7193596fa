"""The operation that passes build: a convolution or dense layer with what follows it, on images (N, H, W, C)."""

import dataclasses
import math
import re

import jax
import numpy as np

from cambrian.models.graph.graph import Constant, Graph, Node
from cambrian.models.lowerings import LOWERINGS, POINTWISE, Call, Finish


@dataclasses.dataclass(frozen=True, slots=True)
class FusedConvolution(Call):
    """A call with its lowering; a dense layer has a 1×1 kernel.

    Its operands are the images, the arrays from `prepare`, of kernel and bias (C_out,), and the residual if there is
    one.

    Attributes:
      lowering: name in LOWERINGS. `native` computes integers in float32.
    """

    lowering: str = "native"
    name = "fused_convolution"

    @property
    def is_dense(self) -> bool:
        """Whether each pixel of the result is computed from one pixel of the images."""
        return self.window == POINTWISE and self.groups == 1

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is a group of its own."""
        return self.groups == self.in_shape[3] == self.out_channels

    @property
    def flops(self) -> int:
        """Floating-point operations of direct convolution; a multiply-add counts as two."""
        return 2 * math.prod(self.out_shape[:3]) * math.prod(self.kernel_shape)

    def prepare(self, kernel: np.ndarray, bias: np.ndarray) -> list[np.ndarray]:
        """Transforms and packs a kernel of `kernel_shape` and a bias (C_out,), both float32, for the lowering."""
        lowering = LOWERINGS[self.lowering]
        return [*lowering.prepare(kernel, self), lowering.prepare_bias(bias, self)]

    def __call__(self, images: jax.Array, *operands: jax.Array) -> list[jax.Array]:
        *kernel, bias = operands[: len(operands) - self.residual]
        finish = Finish(self, bias, operands[-1] if self.residual else None)
        return [LOWERINGS[self.lowering].apply(images, kernel, finish)]


def weights(node: Node) -> tuple[Constant, Constant]:
    """The kernel and the bias of a fused convolution."""
    _, kernel, bias = node.inputs[:3]
    assert isinstance(kernel, Constant) and isinstance(bias, Constant)
    return kernel, bias


def last_convolutions(graph: Graph) -> set[Node]:
    """The fused convolutions whose results reach the graph's results without another one."""
    reaching, last = set(graph.outputs), set()
    for node in reversed(graph.nodes):
        if not reaching.intersection(node.outputs):
            continue
        if isinstance(node.operation, FusedConvolution):
            last.add(node)
        else:
            reaching.update(node.inputs)
    return last


def layer_name(node: Node) -> str:
    """The name of a fused convolution: that of its kernel in the parameters, less the last part."""
    return re.sub(r"[./][^./]*$", "", weights(node)[0].path) or "layer"
