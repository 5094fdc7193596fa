"""The operation that passes build: a convolution or dense layer with what follows it, on images (N, H, W, C)."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cambrian.models.graph.graph import Constant, Node
from cambrian.models.lowerings import LOWERINGS, Call, Finish, Window, lowerings_for
from cambrian.models.lowerings.lowering import kernel_dtype
from cambrian.models.lowerings.onednn import Convolution, fused_after


@dataclasses.dataclass(frozen=True, slots=True)
class FusedConvolution:
    """A convolution, then bias, residual and activation; a dense layer has a 1×1 kernel.

    Its operands are the images, the arrays from `prepare`, of kernel and bias (C_out,), and the residual if there is
    one.

    Attributes:
      in_shape: shape (N, H, W, C_in) of the images.
      out_channels: number of output channels of all groups.
      window: window of the convolution.
      groups: number of channel groups.
      dtype: dtype of the images, and of the kernel, which is int8 with images of uint8 or int8.
      out_dtype: dtype of the result and, but with integers, of the residual; products accumulate in float32.
      residual: whether a residual (N, H', W', C_out) is added.
      activation: a name of ACTIVATIONS, or None.
      scales: of integers, see `cambrian.models.lowerings.Finish`; without a residual, the second one multiplies the
        result of the activation.
      precision: of the products, as the function asks JAX for it; None for JAX's default. CPUs compute in full.
      lowering: `native` (XLA's), `onednn`, or another of LOWERINGS. `native` computes integers in float32.
    """

    in_shape: tuple[int, ...]
    out_channels: int
    window: Window
    groups: int = 1
    dtype: str = "float32"
    out_dtype: str = "float32"
    residual: bool = False
    activation: str | None = None
    scales: tuple[float, float] = (1.0, 1.0)
    precision: lax.Precision | tuple[lax.Precision, lax.Precision] | None = None
    lowering: str = "native"

    @property
    def name(self) -> str:
        return "fused_convolution"

    @property
    def is_integer(self) -> bool:
        return kernel_dtype(self.dtype) == "int8"

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """Shape (kh, kw, C_in per group, C_out of all groups)."""
        return self.onednn.kernel_shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.onednn.out_shape

    @property
    def is_dense(self) -> bool:
        """Whether each pixel of the result is computed from one pixel of the images."""
        return self.window == Window.square(1, 1, ((0, 0), (0, 0))) and self.groups == 1

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is a group of its own."""
        return self.groups == self.in_shape[3] == self.out_channels

    @property
    def flops(self) -> int:
        """Floating-point operations of direct convolution; a multiply-add counts as two."""
        return 2 * int(np.prod(self.out_shape[:3])) * int(np.prod(self.kernel_shape))

    @property
    def onednn(self) -> Convolution:
        """The call of oneDNN that computes all of it."""
        following = fused_after(self.dtype, self.out_dtype, self.residual, self.activation)
        return Convolution(
            self.in_shape,
            self.out_channels,
            self.window,
            self.dtype,
            self.out_dtype,
            self.groups,
            following,
            self.scales[: following.count("LINEAR")],
        )

    def candidates(self, platform: str) -> list[str]:
        """The lowerings that can compute it on a platform."""
        if self.is_integer:
            return ["onednn"]
        return ["native", *(name for name in lowerings_for(self._call, platform) if name != "native")]

    def prepare(self, kernel: np.ndarray, bias: np.ndarray) -> list[np.ndarray]:
        """Transforms and packs a kernel of `kernel_shape` and a bias (C_out,), both float32, for the lowering."""
        if self.lowering == "onednn":
            bias = bias if self.is_integer else bias.astype(self.out_dtype)
            return [self.onednn.pack(kernel.astype(kernel_dtype(self.dtype))), bias]
        if self.lowering == "native":
            return [kernel.astype(self.dtype), bias]
        lowering = LOWERINGS[self.lowering]
        arrays = [array.astype(self.dtype) for array in lowering.transform(kernel)]
        packed = arrays if lowering.pack is None else [lowering.pack(array, self._call) for array in arrays]
        return [*packed, bias]

    def __call__(self, images: jax.Array, *operands: jax.Array) -> list[jax.Array]:
        *kernel, bias = operands[: len(operands) - self.residual]
        residual = operands[-1] if self.residual else None
        if self.lowering == "onednn":
            bias = bias if self.is_integer else bias.astype(self.out_dtype)
            return [self.onednn(images, kernel[0], [bias, *([] if residual is None else [residual])])]
        finish = Finish(self._call, bias, residual, self.scales)
        if self.lowering == "native":
            dtype = "float32" if self.is_integer else self.dtype
            products = lax.conv_general_dilated(
                images.astype(dtype),
                kernel[0].astype(dtype),
                self.window.stride,
                self.window.padding,
                rhs_dilation=self.window.dilation,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=self.groups,
                precision=lax.Precision.HIGHEST if self.is_integer else self.precision,
                preferred_element_type=jnp.float32,
            )
            return [finish(products)]
        return [LOWERINGS[self.lowering].apply(images, kernel, finish)]

    @property
    def _call(self) -> Call:
        return Call(
            self.in_shape,
            self.out_channels,
            self.window,
            self.dtype,
            self.out_dtype,
            self.residual,
            self.activation,
            groups=self.groups,
        )


def layer_name(node: Node) -> str:
    """The name of a fused convolution: that of its kernel in the parameters, less the last part."""
    kernel = node.inputs[1]
    assert isinstance(kernel, Constant)
    return re.sub(r"[./][^./]*$", "", kernel.path) or "layer"
