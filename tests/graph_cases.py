"""Layers to write functions from, and their graphs, rewritten and compared with what JAX gives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cambrian.models.graph.fused_convolution import FusedConvolution
from cambrian.models.graph.graph import Graph
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.trace import trace

RANDOM = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, np.float32)


def evaluate(graph: Graph, inputs: np.ndarray) -> list[np.ndarray]:
    constants = {constant: jnp.asarray(constant.array) for constant in graph.constants()}
    return [np.asarray(output) for output in jax.jit(lambda x: graph.evaluate(constants, [x]))(inputs)]


def rewrite(function, params, inputs) -> Graph:
    """The optimised graph, after its results have been compared with the function's."""
    graph = optimized(trace(function, params, inputs)[0])
    expected = np.asarray(jax.jit(function)(params, inputs))
    (got,) = evaluate(graph, inputs)
    assert got.dtype == expected.dtype
    assert np.allclose(got, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())
    return graph


def fused(graph: Graph) -> list[FusedConvolution]:
    return [node.operation for node in graph.nodes if isinstance(node.operation, FusedConvolution)]


def others(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes if not isinstance(node.operation, FusedConvolution)]


def conv(x, kernel, stride=1, padding: Any = "SAME", numbers=("NHWC", "HWIO", "NHWC"), **more):
    strides = (stride,) * (x.ndim - 2)
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers, **more)


def batch_norm(x, p, axis=-1):
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    mean, var, scale, shift = (p[name].reshape(shape) for name in ("mean", "var", "scale", "shift"))
    return (x - mean) * lax.rsqrt(var + 1e-5) * scale + shift


def norm_params(channels: int) -> dict[str, np.ndarray]:
    names = ("mean", "var", "scale", "shift")
    return {name: draw(channels) if name != "var" else RANDOM.uniform(0.5, 2, channels).astype("f") for name in names}
