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
    pooled = x.astype(dtype)
    # Along one dimension after another. XLA:CPU takes twice as long for `reduce_window`, and twenty times in bfloat16.
    for axis, (size, stride, (before, after)) in enumerate(zip(sizes, strides, padding, strict=True)):
        if (size, stride, before, after) != (1, 1, 0, 0):
            pooled = _pool_axis(pooled, axis, size, stride, before, after, kind)
    return pooled


def _pool_axis(x: jax.Array, axis: int, size: int, stride: int, before: int, after: int, kind: str) -> jax.Array:
    """Pools along one axis. Windows that reach over an end are computed by themselves: XLA:CPU pads slowly."""
    length = x.shape[axis]
    windows = (before + length + after - size) // stride + 1

    def pooled(first: int, number: int, taps: range) -> jax.Array:
        start = first * stride - before
        last = (number - 1) * stride + 1
        parts = [lax.slice_in_dim(x, start + tap, start + tap + last, stride, axis) for tap in taps]
        return functools.reduce(_COMBINED[kind], parts)

    def over_an_end(window: int) -> jax.Array:
        start = window * stride - before
        taps = range(max(0, -start), min(size, length - start))
        if taps:
            return pooled(window, 1, taps)
        shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
        return jnp.full(shape, lowest(x.dtype) if kind == "max" else 0, x.dtype)

    first = min(-(-before // stride), windows)
    end = max(first, min(windows, (before + length - size) // stride + 1))
    parts = [over_an_end(window) for window in range(first)]
    if first < end:
        parts.append(pooled(first, end - first, range(size)))
    parts += [over_an_end(window) for window in range(end, windows)]
    return lax.concatenate(parts, axis)


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
