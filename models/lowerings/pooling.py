"""Pooling layers."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from cambrian.models.lowerings import Window
from cambrian.sharding import sum_over_model_axis

_COMBINED = {"max": jnp.maximum, "sum": jnp.add}


def pool(
    x: jax.Array, sizes: Sequence[int], strides: Sequence[int], padding: Sequence[tuple[int, int]], kind: str
) -> jax.Array:
    """Computes the maximum or sum of each window of an array; padding adds nothing.

    Floats are computed in float32, and so are sums of integers; their maxima stay integers.

    Args:
      x: array of any number of dimensions.
      sizes, strides, padding: of the windows, along each dimension.
      kind: max or sum.
    """
    dtype = x.dtype if kind == "max" and jnp.issubdtype(x.dtype, jnp.integer) else jnp.dtype("float32")
    fill = lowest(dtype) if kind == "max" else 0
    # Along one dimension after another. XLA:CPU takes twice as long for `reduce_window`, and twenty times in bfloat16.
    pooled = jnp.pad(x.astype(dtype), padding, constant_values=fill)
    for axis, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        last = (pooled.shape[axis] - size) // stride * stride
        shifted = [lax.slice_in_dim(pooled, at, at + last + 1, stride, axis) for at in range(size)]
        pooled = functools.reduce(_COMBINED[kind], shifted)
    return pooled


def max_pool(x: jax.Array, window: Window) -> jax.Array:
    """Computes the maximum of each window of images (N, H, W, C), padded with the lowest value."""
    padding = ((0, 0), *window.padding, (0, 0))
    return pool(x, (1, *window.size, 1), (1, *window.stride, 1), padding, "max").astype(x.dtype)


def lowest(dtype: DTypeLike) -> float:
    """The lowest value of a dtype."""
    return -np.inf if jnp.issubdtype(dtype, jnp.floating) else int(jnp.iinfo(dtype).min)


def mean_pool(x: jax.Array, size: tuple[int, int], summed: bool) -> jax.Array:
    """Computes the mean over the pixels of images (N, H, W, C): (N, 1, 1, C) float32.

    Args:
      x: local images.
      size: height and width of the whole images.
      summed: whether the rows are cut over the model axis, so that partial sums are summed over it.
    """
    total = x.astype(jnp.float32).sum(axis=(1, 2), keepdims=True)
    return (sum_over_model_axis(total) if summed else total) / (size[0] * size[1])
