"""Pooling layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cambrian.models.lowerings import Window
from cambrian.sharding import sum_over_model_axis


def max_pool(x: jax.Array, window: Window) -> jax.Array:
    """Computes the maximum of each window of images (N, H, W, C), padded with the lowest value."""
    # Along rows, then along columns: XLA:CPU takes five times as long for `reduce_window` in bfloat16.
    largest = jnp.pad(x, ((0, 0), *window.padding, (0, 0)), constant_values=-np.inf)
    for axis, out_size, size, stride in zip((1, 2), window.out_size(x.shape), window.size, window.stride, strict=True):
        last = stride * (out_size - 1)
        shifted = [lax.slice_in_dim(largest, at, at + last + 1, stride, axis) for at in range(size)]
        largest = functools.reduce(jnp.maximum, shifted)
    return largest


def mean_pool(x: jax.Array, size: tuple[int, int], summed: bool) -> jax.Array:
    """Computes the mean over the pixels of images (N, H, W, C): (N, 1, 1, C) float32.

    Args:
      x: local images.
      size: height and width of the whole images.
      summed: whether the rows are cut over the model axis, so that partial sums are summed over it.
    """
    total = x.astype(jnp.float32).sum(axis=(1, 2), keepdims=True)
    return (sum_over_model_axis(total) if summed else total) / (size[0] * size[1])
