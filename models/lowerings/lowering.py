"""The interface of lowerings, the elementwise pass at the end of every layer, and layers compiled by themselves.

Images are (N, H, W, C). Products accumulate in float32, or in int32 for integers; float32 products have full precision
(no TF32).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.typing import DTypeLike

from cambrian.models.lowerings.activations import ACTIVATIONS
from cambrian.sharding import sum_over_model_axis

Padding = tuple[tuple[int, int], tuple[int, int]]  # (above, below), (left, right)
_UNIT_SPACING = np.float32(1.5 * 2**23)  # and its bits end in zeros


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Size, stride and dilation of a kernel along (rows, columns), and the padding of its images."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding
    dilation: tuple[int, int] = (1, 1)

    @classmethod
    def square(cls, size: int, stride: int, padding: Padding) -> "Window":
        """A window with the same size and stride along rows and columns."""
        return cls((size, size), (stride, stride), padding)

    def out_size(self, shape: Sequence[int]) -> tuple[int, int]:
        """Returns (H', W') of the convolution of images of this shape (N, H, W, C)."""
        sizes = (
            (length + sum(pad) - dilation * (size - 1) - 1) // stride + 1
            for length, pad, size, stride, dilation in zip(
                shape[1:3], self.padding, self.size, self.stride, self.dilation, strict=True
            )
        )
        return next(sizes), next(sizes)


POINTWISE = Window.square(1, 1, ((0, 0), (0, 0)))


@dataclasses.dataclass(frozen=True, slots=True)
class ConvolutionSpec:
    """The static description of a convolution.

    Attributes:
      in_shape: shape (N, H, W, C_in) of the images.
      out_channels: number of output channels of all groups.
      window: window of the convolution.
      dtype: dtype of the images, and of the kernel, which is int8 with images of uint8 or int8.
      out_dtype: dtype of the result and, but with integers, of the arrays that are added. Products accumulate in
        float32, of integers in int32.
      groups: number of channel groups, each with its own kernel.
    """

    in_shape: tuple[int, ...]
    out_channels: int
    window: Window
    dtype: str = "float32"
    out_dtype: str = "float32"
    groups: int = 1

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """Shape (kh, kw, C_in per group, C_out of all groups)."""
        return *self.window.size, self.in_shape[3] // self.groups, self.out_channels

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.in_shape[0], *self.window.out_size(self.in_shape), self.out_channels

    @property
    def is_integer(self) -> bool:
        return kernel_dtype(self.dtype) == "int8"


@dataclasses.dataclass(frozen=True, slots=True)
class Call(ConvolutionSpec):
    """A convolution, then bias, residual and activation, as a lowering computes them.

    Attributes:
      residual: whether a residual (N, H', W', C_out) is added.
      activation: name in ACTIVATIONS of what follows; None for nothing.
      scales: two factors, of integers, see `Finish`.
      summed: whether the products are summed over the model axis.
      precision: of XLA's products, as JAX takes it. CPUs compute in full.
    """

    residual: bool = False
    activation: str | None = None
    scales: tuple[float, float] = (1.0, 1.0)
    summed: bool = False
    precision: lax.Precision | tuple[lax.Precision, lax.Precision] | None = lax.Precision.HIGHEST

    @property
    def is_ungrouped_square(self) -> bool:
        """Whether a square window without dilation, which moves alike along both axes, reads all channels."""
        window = self.window
        is_square = window.dilation == (1, 1) and len({*window.size}) == len({*window.stride}) == 1
        return is_square and self.groups == 1


@dataclasses.dataclass(frozen=True, slots=True)
class Finish:
    """What follows the products of a convolution, in one pass: sum over devices, bias, residual, activation, cast.

    Of integers: `activation(((products + bias) * scales[0] + residual) * scales[1])`, or without a residual
    `activation((products + bias) * scales[0]) * scales[1]`; then the cast, which rounds half to even and saturates.

    Attributes:
      call: whose products these are.
      bias: (C_out,) float32.
      residual: (N, H', W', C_out), or None.
    """

    call: Call
    bias: jax.Array
    residual: jax.Array | None = None

    def __call__(self, products: jax.Array) -> jax.Array:
        """Turns products (N, H', W', C_out), float32 or int32, into the layer's output of the same shape."""
        if self.call.summed:
            products = sum_over_model_axis(products)
        scale, out_scale = self.call.scales
        y = products.astype(jnp.float32) + jnp.expand_dims(self.bias, (0, 1, 2))
        if scale != 1:
            # Rounded before the sum below, as oneDNN does: in one instruction with it, integers would differ at times.
            y = lax.optimization_barrier(y * np.float32(scale))
        if self.residual is not None:
            y = y + self.residual.astype(y.dtype)
            y, out_scale = y if out_scale == 1 else y * np.float32(out_scale), 1.0
        y = y if self.call.activation is None else ACTIVATIONS[self.call.activation](y)
        return to_dtype(y if out_scale == 1 else y * np.float32(out_scale), self.call.out_dtype)


def to_dtype(y: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Casts float32 to a dtype; to integers by rounding half to even, saturated."""
    if not jnp.issubdtype(dtype, jnp.integer):
        return y.astype(dtype)
    limits = jnp.iinfo(dtype)
    # Float32 numbers near `_UNIT_SPACING` are integers: the sum is rounded half to even, and its last bits are those of
    # the integer. XLA:CPU takes twice as long for `jnp.round` and a conversion (on an AMD EPYC, Zen 4).
    rounded = jnp.clip(y, limits.min, limits.max) + _UNIT_SPACING
    return lax.bitcast_convert_type(rounded, jnp.int32).astype(dtype)


class Scale(NamedTuple):
    """How numbers are stored as integers q of a dtype: scale · (q − zero)."""

    scale: float
    dtype: str
    zero: int = 0

    def quantize(self, x: jax.Array) -> jax.Array:
        """Turns float32 into integers: rounded half to even, saturated."""
        y = x * np.float32(1 / self.scale)
        return to_dtype(y + np.float32(self.zero) if self.zero else y, self.dtype)

    def restore(self, integers: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Turns integers into floats."""
        return (integers.astype(dtype) - self.zero) * np.float32(self.scale)


def kernel_dtype(dtype: str) -> str:
    """The dtype of the kernel for images of this dtype: the same, or int8 for integers."""
    return "int8" if dtype == "uint8" else dtype


@dataclasses.dataclass(frozen=True, slots=True)
class Lowering:
    """One way to compute a convolution.

    Attributes:
      transform: function from a kernel (kh, kw, C_in, C_out) float32 to the arrays that `apply` takes.
      apply: function (images (N, H, W, C_in), transformed kernel, finish) → (N, H', W', C_out) of the call's
        `out_dtype`.
      supports: function from a call to whether the lowering computes such convolutions.
      pack: function that reorders a transformed array, cast to the operands' dtype, for the library of this machine;
        None if the order doesn't matter.
      packed_bytes: function from a call to the bytes of its packed kernel, which may be padded; None without `pack`.
      obstacle: function from a platform (cpu, gpu, tpu) to why the lowering can't be used there with this version of
        jaxlib; None if it can.
      dtypes: operand dtypes for which the lowering is accurate enough: the logits of a network stay within a relative
        error of 1e-5 of unsharded float32 in float32, 1e-2 in bfloat16; integers are exact.
      slow_to_compile: whether XLA takes several times as long to compile it as the other lowerings.
      custom_call: target of the custom call that `apply` makes, which is internal to one version of jaxlib and can't be
        serialized; None if `apply` consists of StableHLO operations.
      opaque: whether `apply` is just the custom call, which XLA never fuses and which adds a bias of `out_dtype`
        itself unless the products are summed.
    """

    transform: Callable[[np.ndarray], Sequence[np.ndarray]]
    apply: Callable[[jax.Array, Sequence[jax.Array], Finish], jax.Array]
    supports: Callable[[Call], bool]
    pack: Callable[[np.ndarray, Call], np.ndarray] | None = None
    obstacle: Callable[[str], str | None] = lambda platform: None
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    slow_to_compile: bool = False
    custom_call: str | None = None
    opaque: bool = False
    packed_bytes: Callable[[Call], int] | None = None

    def prepare(self, kernel: np.ndarray, call: Call) -> list[np.ndarray]:
        """Transforms and packs a device's shard (kh, kw, C_in, C_out) of a kernel."""
        arrays = [array.astype(kernel_dtype(call.dtype)) for array in self.transform(kernel)]
        return arrays if self.pack is None else [self.pack(array, call) for array in arrays]

    def prepare_bias(self, bias: np.ndarray, call: Call) -> np.ndarray:
        """Casts a bias (C_out,) float32 to the dtype in which it is added."""
        keeps_float32 = not self.opaque or call.summed or call.is_integer
        return bias if keeps_float32 else bias.astype(call.out_dtype)


def isolated(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The function compiled by itself: XLA:CPU fuses nothing outside into it."""

    @jax.jit
    def jitted(*operands) -> jax.Array:
        with set_xla_metadata(inlineable=None):  # or functions that it calls, such as a ReLU, were isolated in turn
            return function(*operands)

    def call(*operands) -> jax.Array:
        with set_xla_metadata(inlineable="false"):
            return jitted(*operands)

    return call


def pad(images: jax.Array, padding: Padding) -> jax.Array:
    """Pads images (N, H, W, C) with rows and columns of zeros."""
    rows, columns = padding
    if rows == columns == (0, 0):
        return images
    return jax.lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))
