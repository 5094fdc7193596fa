"""Convolutions for training on CPU, whose result and gradients are calls of oneDNN.

XLA:CPU computes the gradients of a convolution, above all those of kernels, several times slower. At unit stride both
gradients are convolutions themselves: the input's is that of dy with the flipped kernel; the kernel's is that of the
images with dy as kernel, where images and channels trade places. A strided convolution becomes one at unit stride: a
block of stride × stride pixels is taken as one pixel of so many more channels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P

from cambrian.models.lowerings.lowering import Padding, Window, pad
from cambrian.models.lowerings.onednn import Convolution, obstacle
from cambrian.models.lowerings.onednn_matmul import computes_products, transposed_product
from cambrian.sharding import DATA_AXIS

Convolve = Callable[..., jax.Array]  # called as `lax.conv_general_dilated` is


def training_convolution(mesh: Mesh) -> Convolve:
    """The convolution to train with on a mesh, whose data axis cuts the images: a drop-in for lax's.

    It is oneDNN's on CPU where jaxlib carries it, and `lax.conv_general_dilated` anywhere else.
    """
    platform = mesh.devices.flat[0].platform
    if obstacle(platform) or not computes_products():
        return lax.conv_general_dilated

    def call(images: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Padding, **_: Any) -> jax.Array:
        compute = functools.partial(convolve, window=Window.square(kernel.shape[0], strides[0], padding))
        if mesh.size > 1:  # no partitioner knows how to cut a custom call
            specs = (P(DATA_AXIS), P())
            compute = jax.shard_map(compute, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
        return compute(images, kernel)

    return call


def convolve(images: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """The convolution of images (N, H, W, C_in) with a kernel (kh, kw, C_in, C_out): (N, H', W', C_out).

    Kernels must be square, and images padded on all sides alike; results have their dtype, float32 or bfloat16.
    """
    size, stride = window.size[0], window.stride[0]
    if stride == 1:
        return _unit_stride(images, kernel, window.padding)
    if size == 1:
        return _unit_stride(images[:, ::stride, ::stride], kernel, window.padding)
    taps = -(-size // stride)
    rows, columns = (stride * (length + taps - 1) for length in window.out_size(images.shape))
    (above, _), (left, _) = window.padding
    below, right = rows - images.shape[1] - above, columns - images.shape[2] - left  # negative where none reads
    blocks = _blocks(pad(images, ((above, below), (left, right))), stride)
    missing = taps * stride - size
    kernel = jnp.pad(kernel, ((0, missing), (0, missing), (0, 0), (0, 0)))
    # The kernel's input channels in the order of the blocks' channels.
    kernel = _blocks(kernel.transpose(3, 0, 1, 2), stride).transpose(1, 2, 3, 0)
    return _unit_stride(blocks, kernel, ((0, 0), (0, 0)))


def _blocks(x: jax.Array, size: int) -> jax.Array:
    """(N, H, W, C) → (N, H / size, W / size, size² · C)."""
    number, rows, columns, channels = x.shape
    parts = x.reshape(number, rows // size, size, columns // size, size, channels)
    return parts.transpose(0, 1, 3, 2, 4, 5).reshape(number, rows // size, columns // size, -1)


def _call(images: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    rows, columns = kernel.shape[:2]
    window, dtype = Window((rows, columns), (1, 1), padding), str(images.dtype)
    return Convolution(images.shape, kernel.shape[3], window, dtype, dtype)(images, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _unit_stride(images: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    return _call(images, kernel, padding)


def _forward(images: jax.Array, kernel: jax.Array, padding: Padding):
    return _call(images, kernel, padding), (images, kernel)


def _backward(padding: Padding, saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    images, kernel = saved
    size, _, in_channels, out_channels = kernel.shape
    (above, below), (left, right) = padding
    rest = size - 1
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    d_images = _call(dy, flipped, ((rest - above, rest - below), (rest - left, rest - right)))
    if size == 1:
        product = transposed_product(images.reshape(-1, in_channels), dy.reshape(-1, out_channels))
        return d_images, product.reshape(kernel.shape)
    d_kernel = _call(images.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), padding)
    return d_images, d_kernel.transpose(1, 2, 0, 3)


_unit_stride.defvjp(_forward, _backward)
