import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cambrian.models.lowerings import Window
from cambrian.models.lowerings.pooling import max_pool, pool


def largest_of_each_window(x: np.ndarray, window: Window) -> np.ndarray:
    padded = np.pad(x, ((0, 0), *window.padding, (0, 0)), constant_values=-np.inf)
    (rows, columns), (size, _), (stride, _) = window.out_size(x.shape), window.size, window.stride
    out = np.empty((len(x), rows, columns, x.shape[3]), x.dtype)
    for row, column in np.ndindex(rows, columns):
        seen = padded[:, row * stride :, column * stride :][:, :size, :size]
        out[:, row, column] = seen.max(axis=(1, 2))
    return out


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 1), (1, 0)), ((4, 0), (2, 3))])
def test_max_pool_takes_the_largest_of_each_window(size, stride, padding):
    window = Window.square(size, stride, padding)
    # Negative, so that padding with anything but the lowest would be seen.
    every = [
        np.random.default_rng(0).uniform(-9, -1, (2, rows, columns, 5)).astype(jnp.dtype(dtype))
        for rows, columns in ((3, 3), (4, 7), (9, 8))
        for dtype in ("float32", "bfloat16")
    ]
    pooled = jax.jit(lambda images: [max_pool(each, window) for each in images])(every)
    for x, got in zip(every, pooled, strict=True):
        assert got.dtype == x.dtype
        np.testing.assert_array_equal(np.asarray(got, np.float32), largest_of_each_window(x.astype(np.float32), window))


@pytest.mark.parametrize("padding", [(0, 0), (1, 2), (4, 3)])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_pool_of_either_kind_is_reduce_window(stride, padding):
    sizes, strides, pads = (1, 3, 1), (1, stride, 1), ((0, 0), padding, (0, 0))
    x = jnp.asarray(np.random.default_rng(1).integers(-9, -1, (2, 8, 3)), "float32")
    for kind, start, combine in (("max", -jnp.inf, jax.lax.max), ("sum", 0.0, jax.lax.add)):
        expected = jax.lax.reduce_window(x, start, combine, sizes, strides, pads)
        np.testing.assert_array_equal(pool(x, sizes, strides, pads, kind), expected)
