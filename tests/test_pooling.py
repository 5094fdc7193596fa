import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cambrian.models.lowerings import Window
from cambrian.models.lowerings.pooling import max_pool


def largest_of_each_window(x: np.ndarray, window: Window) -> np.ndarray:
    padded = np.pad(x, ((0, 0), *window.padding, (0, 0)), constant_values=-np.inf)
    (rows, columns), (size, _), (stride, _) = window.out_size(x.shape), window.size, window.stride
    out = np.empty((len(x), rows, columns, x.shape[3]), x.dtype)
    for row, column in np.ndindex(rows, columns):
        seen = padded[:, row * stride :, column * stride :][:, :size, :size]
        out[:, row, column] = seen.max(axis=(1, 2))
    return out


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 1), (1, 0))])
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
