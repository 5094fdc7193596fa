"""How one convolution is computed: each lowering is a weight transform, done once at build, and a local apply.

Images are (N, H, W, C). Products are accumulated in float32 whatever the operands' type; in float32 itself they are
computed in full (no TF32). A transformed kernel keeps its input and output channels as the last two dimensions, so that
a partition can cut them after the transform.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]  # (above, below), (left, right)


@dataclasses.dataclass(frozen=True, slots=True)
class Lowering:
    """One way to compute a convolution.

    Attributes:
      transform: kernel (kh, kw, C_in, C_out) → what `apply` takes, (…, C_in, C_out).
      apply: (images (N, H, W, C_in), transformed kernel, kernel size, stride, padding) → (N, H', W', C_out) float32.
      supports: whether it computes a convolution of this kernel size and stride.
    """

    transform: Callable[[np.ndarray], np.ndarray]
    apply: Callable[[jax.Array, jax.Array, int, int, Padding], jax.Array]
    supports: Callable[[int, int], bool]


def _native(x: jax.Array, kernel: jax.Array, size: int, stride: int, padding: Padding) -> jax.Array:
    del size
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _matmul(x: jax.Array, kernel: jax.Array, size: int, stride: int, padding: Padding) -> jax.Array:
    del size, padding
    return contract_channels(x[:, ::stride, ::stride], kernel[0])


def _im2col(x: jax.Array, kernel: jax.Array, size: int, stride: int, padding: Padding) -> jax.Array:
    (above, below), (left, right) = padding
    rows, columns = x.shape[1], x.shape[2]
    out_rows = (rows + above + below - size) // stride + 1
    out_columns = (columns + left + right - size) // stride + 1
    # A tap that reads nothing but padding is left out: at 1×1 the centre alone remains of a 3×3 kernel.
    taps = [
        (i, j)
        for i in range(size)
        for j in range(size)
        if _reads_input(i, above, rows, out_rows, stride) and _reads_input(j, left, columns, out_columns, stride)
    ]
    padded = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (above, below, 0), (left, right, 0), (0, 0, 0)))
    patches = [
        padded[:, i : i + (out_rows - 1) * stride + 1 : stride, j : j + (out_columns - 1) * stride + 1 : stride]
        for i, j in taps
    ]
    if len(taps) < size**2:
        kernel = jnp.stack([kernel[i * size + j] for i, j in taps])
    return contract_channels(jnp.concatenate(patches, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


def _reads_input(tap: int, before: int, length: int, out_length: int, stride: int) -> bool:
    return any(0 <= out * stride + tap - before < length for out in range(out_length))


def contract_channels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Images (N, H, W, C_in) times a matrix (C_in, C_out): (N, H, W, C_out) in float32."""
    # A two-dimensional product: XLA:CPU hands it to its matmul library whole.
    flat = lax.dot_general(
        x.reshape(-1, x.shape[-1]),
        kernel,
        (((1,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def _taps(kernel: np.ndarray) -> np.ndarray:
    return kernel.reshape(-1, *kernel.shape[2:])


LOWERINGS = {
    "native": Lowering(transform=lambda kernel: kernel, apply=_native, supports=lambda size, stride: True),
    "matmul": Lowering(transform=_taps, apply=_matmul, supports=lambda size, stride: size == 1),
    "im2col": Lowering(transform=_taps, apply=_im2col, supports=lambda size, stride: True),
}
