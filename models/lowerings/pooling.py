"""The layers between convolutions that have no weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cambrian.models.lowerings import Window
from cambrian.sharding import sum_over_model_axis


def max_pool(x: jax.Array, window: Window) -> jax.Array:
    """The largest value in each window of images (N, H, W, C), which are padded with the lowest."""
    # Of rows, then of columns: XLA:CPU computes the same `reduce_window` five times as long in bfloat16.
    largest = jnp.pad(x, ((0, 0), *window.padding, (0, 0)), constant_values=-np.inf)
    for axis, size in zip((1, 2), window.out_size(x.shape), strict=True):
        last = window.stride * (size - 1)
        shifted = [lax.slice_in_dim(largest, at, at + last + 1, window.stride, axis) for at in range(window.size)]
        largest = functools.reduce(jnp.maximum, shifted)
    return largest


def mean_pool(x: jax.Array, size: tuple[int, int], summed: bool) -> jax.Array:
    """The mean over images (N, H, W, C) whose whole size is (H, W): (N, 1, 1, C) float32.

    Args:
      summed: whether the rows are cut by the model axis, over which they are then summed.
    """
    total = x.astype(jnp.float32).sum(axis=(1, 2), keepdims=True)
    return (sum_over_model_axis(total) if summed else total) / (size[0] * size[1])
