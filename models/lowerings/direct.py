"""Direct lowerings, which multiply each weight by each pixel under it: XLA's convolution, matmul and im2col."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cambrian.models.lowerings.lowering import Call, Finish, Lowering, pad


def _native(x: jax.Array, kernel: Sequence[jax.Array], finish: Finish) -> jax.Array:
    call, window = finish.call, finish.call.window
    dtype = "float32" if call.is_integer else call.dtype
    return finish(
        lax.conv_general_dilated(
            x.astype(dtype),
            kernel[0].astype(dtype),
            window_strides=window.stride,
            padding=window.padding,
            rhs_dilation=window.dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=call.groups,
            precision=call.precision,
            preferred_element_type=jnp.float32,
        )
    )


def _matmul(x: jax.Array, kernel: Sequence[jax.Array], finish: Finish) -> jax.Array:
    window = finish.call.window
    rows, columns = window.stride
    return finish(_contract_channels(pad(x, window.padding)[:, ::rows, ::columns], kernel[0]))


def _im2col(x: jax.Array, kernel: Sequence[jax.Array], finish: Finish) -> jax.Array:
    window = finish.call.window
    size, stride = window.size[0], window.stride[0]
    (above, _), (left, _) = window.padding
    out_rows, out_columns = window.out_size(x.shape)
    if window.size == x.shape[1:3] and window.padding == ((0, 0), (0, 0)):  # all pixels, in order
        return finish(_contract_channels(x.reshape(len(x), 1, 1, -1), kernel[0].reshape(-1, kernel[0].shape[-1])))
    # Taps that read only padding are left out: on a 1×1 image, only the centre of a 3×3 kernel remains.
    taps = [
        (i, j)
        for i in range(size)
        for j in range(size)
        if _reads_input(i, above, x.shape[1], out_rows, stride)
        and _reads_input(j, left, x.shape[2], out_columns, stride)
    ]
    padded = pad(x, window.padding)
    patches = [
        padded[:, i : i + (out_rows - 1) * stride + 1 : stride, j : j + (out_columns - 1) * stride + 1 : stride]
        for i, j in taps
    ]
    weights = kernel[0]
    if len(taps) < size**2:
        weights = jnp.stack([weights[i * size + j] for i, j in taps])
    return finish(_contract_channels(jnp.concatenate(patches, axis=-1), weights.reshape(-1, weights.shape[-1])))


def _reads_input(tap: int, before: int, length: int, out_length: int, stride: int) -> bool:
    return any(0 <= out * stride + tap - before < length for out in range(out_length))


def _contract_channels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies images (N, H, W, C_in) by a matrix (C_in, C_out): (N, H, W, C_out) float32."""
    # Two-dimensional, so that XLA:CPU passes the whole product to its matmul library.
    flat = lax.dot_general(
        x.reshape(-1, x.shape[-1]),
        kernel,
        (((1,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def _taps(kernel: np.ndarray) -> list[np.ndarray]:
    return [kernel.reshape(-1, *kernel.shape[2:])]


def _multiplies_pixels(call: Call) -> bool:
    return call.is_ungrouped_square and call.window.size == (1, 1)


def _multiplies_patches(call: Call) -> bool:
    return call.is_ungrouped_square and call.window.size != (1, 1)


NATIVE = Lowering(transform=lambda kernel: [kernel], apply=_native, supports=lambda call: True)
MATMUL = Lowering(transform=lambda kernel: [kernel[0, 0]], apply=_matmul, supports=_multiplies_pixels)
IM2COL = Lowering(transform=_taps, apply=_im2col, supports=_multiplies_patches)
