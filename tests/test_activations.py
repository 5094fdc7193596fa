"""Activations are recognised by their values, and what only resembles one is left as it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import cambrian
import cambrian.sharding
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.trace import trace
from graph_cases import draw, evaluate, fused, others, rewrite

ACTIVATIONS = {
    "RELU": [jax.nn.relu, lambda x: jnp.maximum(0, x), lambda x: jnp.where(x > 0, x, 0)],
    "RELU6": [jax.nn.relu6, lambda x: jnp.clip(x, 0, 6), lambda x: lax.clamp(0.0, x, 6.0)],
    "SWISH": [jax.nn.silu, lambda x: x / (1 + jnp.exp(-x)), lambda x: x * 0.5 * (jnp.tanh(0.5 * x) + 1)],
    "SIGMOID": [jax.nn.sigmoid, lambda x: 1 / (1 + jnp.exp(-x))],
    "TANH": [jnp.tanh],
    "GELU_ERF": [
        functools.partial(jax.nn.gelu, approximate=False),
        lambda x: 0.5 * x * (1 + lax.erf(x / np.sqrt(2).astype("f"))),
    ],
    "GELU_TANH": [
        functools.partial(jax.nn.gelu, approximate=True),
        lambda x: 0.5 * x * (1 + jnp.tanh(0.7978845608 * (x + 0.044715 * x * x * x))),
    ],
    "ELU": [jax.nn.elu],
}


@pytest.mark.parametrize(("name", "way"), [(n, way) for n, ways in ACTIVATIONS.items() for way in range(len(ways))])
def test_activations_are_known_by_their_values(name, way):
    graph = rewrite(lambda k, x: ACTIVATIONS[name][way](x @ k), draw(6, 7), draw(3, 6))
    assert [operation.activation for operation in fused(graph)] == [name]
    assert set(others(graph)) <= {"reshape"}


OTHER_ACTIVATIONS = [
    jax.nn.hard_swish,
    jax.nn.softplus,
    lambda x: jnp.minimum(jax.nn.relu(x), 5),
    lambda x: jnp.minimum(jax.nn.relu(x), 64),
    lambda x: jnp.clip(x, 0, 255),
    lambda x: jax.nn.relu(x) + 1e-6,
    lambda x: jax.nn.relu(x) * 1.00001,
    lambda x: jax.nn.leaky_relu(x, 5e-6),
    lambda x: jnp.clip(jax.nn.sigmoid(x), 1e-6, 1 - 1e-6),
    lambda x: x * jax.nn.sigmoid(jnp.asarray(1.702, x.dtype) * x),  # CLIP's approximation of GELU
    lambda x: jax.nn.sigmoid(jnp.clip(x, -15, 15)),
    lambda x: jnp.tanh(jnp.clip(x, -7, 7)),
    lambda x: jax.nn.relu(jnp.nan_to_num(x)),
    lambda x: jnp.clip(jax.nn.sigmoid(x.astype("float32")), 1e-4, 1 - 1e-4).astype(x.dtype),
    lambda x: (jax.nn.relu(x.astype("float32")) * 1.003).astype(x.dtype),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("function", OTHER_ACTIVATIONS)
def test_other_activations_are_left_to_xla(function, dtype):
    if dtype == "bfloat16" and function in OTHER_ACTIVATIONS[6:8]:
        return  # one of its numbers' last digits
    kernel, x = draw(6, 7).astype(dtype), (100 * draw(3, 6)).astype(dtype)
    graph = optimized(trace(lambda k, x: function(x @ k), kernel, x)[0])
    assert [operation.activation in (None, "RELU", "SIGMOID") for operation in fused(graph)] == [True]
    assert set(others(graph)) - {"reshape", "convert_element_type"}
    got, expected = evaluate(graph, x)[0], function(jnp.asarray(x @ kernel))
    np.testing.assert_allclose(got.astype(np.float32), np.asarray(expected, np.float32), rtol=2e-2, atol=1e-3)


def test_an_epsilon_after_an_activation_keeps_a_logarithm_finite():
    kernel, x = -np.eye(3, dtype=np.float32), np.ones((2, 3), np.float32)
    for function in (lambda y: jnp.log(jax.nn.relu(y) + 1e-6), lambda y: 1 / (jax.nn.relu(y) + 1e-6)):
        fast = cambrian.optimize(lambda k, x, function=function: function(x @ k), kernel)
        np.testing.assert_allclose(fast(x), function(x @ kernel), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cast_around_an_activation_is_part_of_it(dtype):
    kernel, x = draw(6, 7).astype(dtype), draw(3, 6).astype(dtype)
    wide = lambda k, x: jax.nn.silu((x @ k).astype("float32")).astype(x.dtype)  # noqa: E731
    assert [operation.activation for operation in fused(optimized(trace(wide, kernel, x)[0]))] == ["SWISH"]
