"""The pass to bfloat16: what it stores and moves in bfloat16, and what keeps float32."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cambrian.models.graph.passes import optimized
from cambrian.models.graph.precision import Bits, Cast, in_bfloat16
from cambrian.models.graph.trace import trace
from graph_cases import batch_norm, conv, draw, evaluate, fused, norm_params, others


def test_bfloat16_stores_activations_and_keeps_statistics_and_the_last_layer():
    params = {"first": draw(8, 16) / 3, "scale": draw(16), "last": draw(16, 4) / 4}

    def function(p, x):
        y = jax.nn.silu(x @ p["first"])
        mean = y.mean(-1, keepdims=True)
        y = (y - mean) * lax.rsqrt(((y - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * p["scale"]
        return y @ p["last"]

    x = draw(32, 8)
    graph = in_bfloat16(optimized(trace(function, params, x)[0]))
    assert [(each.dtype, each.out_dtype) for each in fused(graph)] == [("bfloat16",) * 2, ("float32",) * 2]
    assert {str(n.output.dtype) for n in graph.nodes if n.name in ("reduce_sum", "rsqrt")} == {"float32"}
    expected = np.asarray(function(params, x))
    (got,) = evaluate(graph, x)
    assert got.dtype == np.float32
    assert 1e-5 < np.linalg.norm(got - expected) / np.linalg.norm(expected) < 1e-2


def test_bfloat16_is_moved_as_integers():
    """XLA:CPU concatenates, pads and slices bfloat16 in float32."""

    def function(p, x):
        y = jax.nn.relu(conv(x, p["first"]))
        y = jnp.concatenate([y, jnp.flip(y[..., :4], 1)], -1)
        return (
            conv(jnp.pad(y, ((0, 0), (1, 1), (0, 0), (0, 0)), constant_values=0.5), p["last"]).mean((1, 2)) @ p["head"]
        )

    params = {"first": draw(3, 3, 4, 8) / 6, "last": draw(1, 1, 12, 16) / 4, "head": draw(16, 3)}
    x = draw(2, 6, 6, 4)
    graph = in_bfloat16(optimized(trace(function, params, x)[0]))
    moves = [node for node in graph.nodes if node.name in ("concatenate", "rev", "slice", "pad")]
    assert [type(node.operation) for node in moves] == [Bits] * 4
    expected = np.asarray(function(params, x))
    (got,) = evaluate(graph, x)
    assert np.linalg.norm(got - expected) < 1e-2 * np.linalg.norm(expected)


def test_each_reduction_converts_its_bfloat16_operand_itself():
    """XLA would store a conversion that two operations read, in float32."""

    def function(p, x):
        y = jax.nn.relu(x @ p["first"])
        mean, square = y.mean(-1, keepdims=True), (y * y).mean(-1, keepdims=True)
        return ((y - mean) * lax.rsqrt(square - mean * mean + 1e-5)) @ p["last"]

    params, x = {"first": draw(8, 16) / 3, "last": draw(16, 4) / 4}, draw(32, 8)
    graph = in_bfloat16(optimized(trace(function, params, x)[0]))
    casts = [node.operation for node in graph.nodes if isinstance(node.operation, Cast)]
    # The input's; the activations' for their difference from the mean, for the mean, and for the squares.
    expected_casts = [("bfloat16", 0), ("float32", 0), ("float32", 1), ("float32", 2)]
    assert sorted((cast.dtype, cast.barriers) for cast in casts) == expected_casts
    expected = np.asarray(function(params, x))
    (got,) = evaluate(graph, x)
    assert np.linalg.norm(got - expected) < 1e-2 * np.linalg.norm(expected)


def test_products_of_activations_take_bfloat16_and_give_float32():
    def function(p, x):
        y = x @ p["in"]
        weights = jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", y, y) / 4)
        return jnp.einsum("nqk,nkd->nqd", weights, y) @ p["out"]

    params, x = {"in": draw(8, 16) / 3, "out": draw(16, 4) / 4}, draw(2, 6, 8)
    graph = in_bfloat16(optimized(trace(function, params, x)[0]))
    products = [node for node in graph.nodes if node.name == "dot_general"]
    assert [[str(value.dtype) for value in (*node.inputs, node.output)] for node in products] == [
        ["bfloat16", "bfloat16", "float32"]
    ] * 2
    expected = np.asarray(function(params, x))
    (got,) = evaluate(graph, x)
    assert np.linalg.norm(got - expected) < 1e-2 * np.linalg.norm(expected)


def test_norms_in_float32_are_folded_where_a_network_computes_in_bfloat16():
    params = {"kernel": draw(3, 3, 4, 8) / 6, "norm": norm_params(8)}

    def function(p, x):
        y = conv(x.astype("bfloat16"), p["kernel"].astype("bfloat16"))
        return jax.nn.relu(batch_norm(y.astype("float32"), p["norm"]).astype("bfloat16"))

    x = draw(2, 6, 6, 4)
    graph = optimized(trace(function, params, x)[0])
    assert [(each.dtype, each.out_dtype, each.activation) for each in fused(graph)] == [("bfloat16",) * 2 + ("RELU",)]
    assert others(graph) == ["convert_element_type"]
    expected = np.asarray(function(params, x), np.float32)
    for each in (graph, in_bfloat16(graph)):
        (got,) = evaluate(each, x)
        assert str(got.dtype) == "bfloat16"
        assert np.linalg.norm(got.astype(np.float32) - expected) < 1e-2 * np.linalg.norm(expected)
