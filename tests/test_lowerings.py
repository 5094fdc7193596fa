"""Each lowering alone against a convolution in float64."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from models.lowerings import LOWERINGS

PADDINGS = {"same": None, "halo": ((0, 0), (1, 1)), "none": ((0, 0), (0, 0))}


def convolve(images: np.ndarray, kernel: np.ndarray, stride: int, padding) -> np.ndarray:
    padded = np.pad(images.astype(np.float64), ((0, 0), *padding, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(1, 2))
    return np.einsum("nhwcij,ijco->nhwo", windows[:, ::stride, ::stride], kernel.astype(np.float64))


@pytest.mark.parametrize("name", LOWERINGS)
@pytest.mark.parametrize("size, stride", list(itertools.product((1, 3, 7), (1, 2))))
@pytest.mark.parametrize("image_size", [1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize("padding", PADDINGS)
def test_lowering_is_the_convolution(name, size, stride, image_size, padding):
    lowering = LOWERINGS[name]
    if not lowering.supports(size, stride):
        assert (name, size > 1) == ("matmul", True)
        return
    sides = (size - 1) // 2
    pads = PADDINGS[padding] or ((sides, sides), (sides, sides))
    if size == 1:
        pads = ((0, 0), (0, 0))  # a 1×1 kernel pads nothing
    if any(image_size + sum(pad) < size for pad in pads):
        return  # no window fits
    random = np.random.default_rng(0)
    images = random.standard_normal((2, image_size, image_size, 5), np.float32)
    kernel = random.standard_normal((size, size, 5, 6), np.float32)
    got = lowering.apply(jnp.asarray(images), jnp.asarray(lowering.transform(kernel)), size, stride, pads)
    expected = convolve(images, kernel, stride, pads)
    assert got.dtype == jnp.float32 and got.shape == expected.shape
    assert np.linalg.norm(got - expected) <= 1e-6 * np.linalg.norm(expected)
