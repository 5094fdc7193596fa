"""Pooling layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cambrian.models.lowerings import Window
from cambrian.sharding import sum_over_model_axis

_COMBINED = {"max": (jnp.maximum, -np.inf), "sum": (jnp.add, 0.0)}  # kind → function of two, and its identity


def pool(x: jax.Array, window: Window, kind: str) -> jax.Array:
    """Computes the maximum or sum of each window of images (N, H, W, C): (N, H', W', C) float32.

    Args:
      x: images.
      window: without dilation; padding adds nothing.
      kind: max or sum.
    """
    combine, identity = _COMBINED[kind]
    # Along rows, then along columns. XLA:CPU takes twice as long for `reduce_window`, and twenty times in bfloat16.
    pooled = jnp.pad(x.astype(jnp.float32), ((0, 0), *window.padding, (0, 0)), constant_values=identity)
    for axis, out_size, size, stride in zip((1, 2), window.out_size(x.shape), window.size, window.stride, strict=True):
        last = stride * (out_size - 1)
        shifted = [lax.slice_in_dim(pooled, at, at + last + 1, stride, axis) for at in range(size)]
        pooled = functools.reduce(combine, shifted)
    return pooled


def max_pool(x: jax.Array, window: Window) -> jax.Array:
    """Computes the maximum of each window of images (N, H, W, C), padded with the lowest value."""
    return pool(x, window, "max").astype(x.dtype)


def mean_pool(x: jax.Array, size: tuple[int, int], summed: bool) -> jax.Array:
    """Computes the mean over the pixels of images (N, H, W, C): (N, 1, 1, C) float32.

    Args:
      x: local images.
      size: height and width of the whole images.
      summed: whether the rows are cut over the model axis, so that partial sums are summed over it.
    """
    total = x.astype(jnp.float32).sum(axis=(1, 2), keepdims=True)
    return (sum_over_model_axis(total) if summed else total) / (size[0] * size[1])
