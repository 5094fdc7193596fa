"""What a lowering is, and the pass that ends every layer.

Images are (N, H, W, C). Products are accumulated in float32 whatever the operands' type; in float32 itself they are
computed in full (no TF32).
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from cambrian.sharding import sum_over_model_axis

Padding = tuple[tuple[int, int], tuple[int, int]]  # (above, below), (left, right)


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """A square kernel's size, its stride, and the padding of the images it slides over."""

    size: int
    stride: int
    padding: Padding

    def out_size(self, shape: Sequence[int]) -> tuple[int, int]:
        """(H', W') of the convolution of images (N, H, W, C) of this shape."""
        sizes = (
            (length + sum(pad) - self.size) // self.stride + 1
            for length, pad in zip(shape[1:3], self.padding, strict=True)
        )
        return next(sizes), next(sizes)


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """What is known of an application before its operands are.

    Attributes:
      in_shape: (N, H, W, C_in) of the images.
      dtype: of images and kernel.
      out_dtype: of the result.
      residual, relu, summed: as in `Finish`.
    """

    in_shape: tuple[int, ...]
    out_channels: int
    window: Window
    dtype: str
    out_dtype: str
    residual: bool
    relu: bool
    summed: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Finish:
    """What follows a convolution's products, in one pass: sum over the model axis, bias, residual, ReLU, cast.

    Attributes:
      bias: (C_out,) float32.
      residual: (N, H', W', C_out), or None.
      dtype: of the result.
      summed: whether the products are a part of the sum over the model axis.
    """

    bias: jax.Array
    residual: jax.Array | None
    relu: bool
    dtype: DTypeLike
    summed: bool = False

    def __call__(self, products: jax.Array) -> jax.Array:
        """(N, H', W', C_out) float32 → the layer's output, of the same shape."""
        if self.summed:
            products = sum_over_model_axis(products)
        y = products + self.bias
        if self.residual is not None:
            y = y + self.residual.astype(y.dtype)
        return (jax.nn.relu(y) if self.relu else y).astype(self.dtype)


@dataclasses.dataclass(frozen=True, slots=True)
class Lowering:
    """One way to compute a convolution.

    Attributes:
      transform: kernel (kh, kw, C_in, C_out) float32 → the arrays that `apply` takes.
      pack: puts those, already of the operands' type, in the order in which this machine's library wants them for a
        call; None where any order is as good.
      apply: (images (N, H, W, C_in), transformed kernel, window, finish) → (N, H', W', C_out) of `finish.dtype`.
      supports: whether it computes a convolution of this kernel size and stride.
      obstacle: why it can't be used on this platform (cpu, gpu, tpu) and this version of jaxlib; None where it can.
      dtypes: of the operands with which it is exact enough: a network's logits stay within 1e-5 of unsharded float32 in
        float32, 1e-2 in bfloat16.
      slow_to_compile: whether XLA takes a good part of a second for a few layers of it.
      custom_call: target of the custom call that it makes, which is internal to one version of jaxlib and which XLA
        can't serialize; None for operations of StableHLO.
      opaque: whether it is that call and nothing else: XLA compiles it on its own in any case, and its bias, unless a
        sum stands before it, has the result's type.
    """

    transform: Callable[[np.ndarray], Sequence[np.ndarray]]
    apply: Callable[[jax.Array, Sequence[jax.Array], Window, Finish], jax.Array]
    supports: Callable[[int, int], bool]
    pack: Callable[[np.ndarray, Call], np.ndarray] | None = None
    obstacle: Callable[[str], str | None] = lambda platform: None
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    slow_to_compile: bool = False
    custom_call: str | None = None
    opaque: bool = False


def pad(images: jax.Array, padding: Padding) -> jax.Array:
    """Images (N, H, W, C) with rows and columns of zeros around them."""
    rows, columns = padding
    if rows == columns == (0, 0):
        return images
    return jax.lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))
