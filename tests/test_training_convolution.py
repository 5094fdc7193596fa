"""Convolution and batch norm of training: results and gradients against JAX's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh

from cambrian.models.lowerings.lowering import Window
from cambrian.models.lowerings.onednn import obstacle
from cambrian.models.lowerings.onednn_matmul import computes_products
from cambrian.models.resnet.batch_norm import normalise_by_batch
from cambrian.models.training import convolution
from cambrian.models.training.convolution import convolve, training_convolution
from cambrian.sharding import MeshShape, make_mesh

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
needs_onednn = pytest.mark.skipif(
    bool(obstacle("cpu")) or not computes_products(), reason="this jaxlib has no oneDNN to call"
)


def reference(images, kernel, window):
    return lax.conv_general_dilated(
        images,
        kernel,
        window.stride,
        window.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )


def operands(size, stride, sides, channels, dtype, number=3):
    in_channels, out_channels = channels
    padding = (size - 1) // 2
    window = Window.square(size, stride, ((padding, padding), (padding, padding)))
    random = np.random.default_rng(0)
    shapes = [(number, *sides, in_channels), (size, size, in_channels, out_channels)]
    shapes.append((number, *window.out_size(shapes[0]), out_channels))
    return window, [jnp.asarray(random.standard_normal(shape, np.float32)).astype(dtype) for shape in shapes]


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(function, images, kernel, dy):
    y, pull = jax.vjp(function, images, kernel)
    return (y, *pull(dy))


def assert_close(got, expected, tolerance):
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        one, other = (np.asarray(value.astype(jnp.float32)) for value in (one, other))
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


@needs_onednn
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize(
    ("sides", "channels"),
    [((7, 7), (3, 16)), ((8, 8), (32, 48)), ((9, 9), (32, 5)), ((2, 2), (16, 16)), ((6, 9), (16, 16))],
)
def test_convolution_and_its_gradients_are_those_of_jax(size, stride, sides, channels, dtype):
    window, (images, kernel, dy) = operands(size, stride, sides, channels, dtype)
    got = with_gradients(lambda x, k: convolve(x, k, window), images, kernel, dy)
    wide = [value.astype(jnp.float32) for value in (images, kernel, dy)]
    expected = with_gradients(lambda x, k: reference(x, k, window), *wide)
    assert_close(got, [value.astype(dtype) for value in expected], TOLERANCE[dtype])


@needs_onednn
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 2)])
def test_each_device_convolves_its_part_of_the_batch(size, stride):
    window, (images, kernel, dy) = operands(size, stride, (8, 8), (16, 16), "float32", number=4)
    call = training_convolution(make_mesh(MeshShape(1, 2), jax.devices()[:2]))
    strides, padding = window.stride, window.padding
    got = with_gradients(lambda x, k: call(x, k, strides, padding), images, kernel, dy)
    assert_close(got, with_gradients(lambda x, k: reference(x, k, window), images, kernel, dy), 1e-5)


def test_without_onednn_the_convolution_is_jax_s(monkeypatch):
    mesh: Mesh = make_mesh(MeshShape(1, 1), jax.devices()[:1])
    monkeypatch.setattr(convolution, "obstacle", lambda platform: "no such target")
    assert training_convolution(mesh) is lax.conv_general_dilated


def derived_batch_norm(x, scale, bias):
    wide = x.astype(jnp.float32)
    mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    return ((wide - mean) * lax.rsqrt(var + 1e-5) * scale + bias).astype(x.dtype), mean, var


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.slow
def test_batch_norm_and_its_gradients_are_those_of_the_formula(dtype):
    random = np.random.default_rng(0)
    x, dy = (jnp.asarray(random.normal(1.0, 2.0, (5, 6, 7, 9)).astype(np.float32)).astype(dtype) for _ in range(2))
    scale, bias = (jnp.asarray(random.standard_normal(9, np.float32)) for _ in range(2))

    @functools.partial(jax.jit, static_argnums=0)
    def run(function):
        outputs, pull = jax.vjp(function, x, scale, bias)
        return (*outputs, *pull((dy, jnp.zeros(9), jnp.zeros(9))))

    assert_close(run(normalise_by_batch), run(derived_batch_norm), TOLERANCE[dtype])
