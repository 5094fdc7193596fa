"""Rewritten functions give what JAX gives: tracing, views, loops, constants, and what stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import cambrian
import cambrian.sharding
from cambrian.models.graph.choose_lowerings import MeasuredCosts, choose_lowerings
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.precision import in_bfloat16
from cambrian.models.graph.scan import Scan, nodes_and_repetitions
from cambrian.models.graph.trace import trace
from graph_cases import batch_norm, conv, draw, evaluate, fused, norm_params, others, rewrite


def test_batch_norm_residual_and_activation_become_one_operation():
    params = {"kernel": draw(3, 3, 8, 8), "norm": norm_params(8)}
    graph = rewrite(lambda p, x: jax.nn.relu(batch_norm(conv(x, p["kernel"]), p["norm"]) + x), params, draw(2, 5, 5, 8))
    (operation,) = fused(graph)
    assert (operation.residual, operation.activation) == (True, "RELU")
    assert others(graph) == []


def test_the_same_network_in_nchw_has_views_at_its_ends_alone():
    params = [{"kernel": draw(8, 8, 3, 3), "norm": norm_params(8)} for _ in range(3)]

    def function(params, x):
        for p in params:
            y = batch_norm(conv(x, p["kernel"], numbers=("NCHW", "OIHW", "NCHW")), p["norm"], axis=1)
            x = jax.nn.relu(y + x)
        return x.mean(axis=(2, 3))

    graph = rewrite(function, params, draw(2, 8, 6, 5))
    assert [operation.activation for operation in fused(graph)] == ["RELU"] * 3
    assert all(operation.residual for operation in fused(graph))
    assert others(graph).count("transpose") == 1


def test_layers_on_tokens_are_computed_where_the_pixels_lie():
    params = {"patch": draw(2, 2, 3, 8), "in": draw(8, 16), "out": draw(16, 8)}

    def function(p, x):
        tokens = conv(x, p["patch"], 2).reshape(2, 9, 8)
        centred = tokens - tokens.mean(-1, keepdims=True)
        y = centred * lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
        return tokens + jax.nn.gelu(y @ p["in"]) @ p["out"]

    graph = rewrite(function, params, draw(2, 6, 6, 3))
    assert [operation.in_shape[1:3] for operation in fused(graph)] == [(6, 6), (3, 3), (3, 3)]
    assert [operation.residual for operation in fused(graph)] == [False, False, True]
    reduced = [node.inputs[0].shape for node in graph.nodes if node.name == "reduce_sum"]
    assert reduced == [(2, 3, 3, 8)] * 2


def test_what_is_read_twice_is_not_fused():
    graph = rewrite(lambda k, x: jax.nn.relu(x @ k) + 2 * (x @ k).sum(), draw(6, 7), draw(3, 6))
    assert len(fused(graph)) == 2  # two products, each read by one chain

    def shared(k, x):
        y = x @ k
        return jax.nn.relu(y) * (y + 1)

    assert [operation.activation for operation in fused(rewrite(shared, draw(6, 7), draw(3, 6)))] == [None]


def test_what_no_pass_knows_stays():
    """Attention, control flow, sorting and integers, between layers that are taken."""

    def function(params, x):
        y = x @ params["in"]
        y = jax.nn.softmax(y @ y.swapaxes(1, 2)) @ y
        y = lax.fori_loop(0, 3, lambda _, carry: jnp.sin(carry) @ params["loop"], y)
        y = lax.cond(y.sum() > 0, lambda z: z * 2, lambda z: z * 3, y)
        order = jnp.argsort(y, axis=1)
        return jnp.take_along_axis(y, order, axis=1) @ params["out"]

    params = {"in": draw(4, 6), "loop": draw(6, 6) / 4, "out": draw(6, 3)}
    assert len(fused(rewrite(function, params, draw(2, 5, 4)))) == 2


def test_what_depends_on_parameters_alone_is_computed_once():
    def standardised(kernel):
        return (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)

    graph = rewrite(lambda k, x: conv(x, standardised(k)), draw(3, 3, 4, 4), draw(1, 5, 5, 4))
    assert len(fused(graph)) == 1
    assert others(graph) == []


def test_nested_calls_and_rules_of_differentiation_are_inlined():
    @jax.custom_vjp
    def scaled(x):
        return 3 * x

    scaled.defvjp(lambda x: (3 * x, None), lambda _, g: (g,))
    function = jax.checkpoint(jax.jit(lambda k, x: jax.jit(jax.nn.relu)(scaled(x @ k))))
    graph = rewrite(function, draw(4, 5), draw(2, 4))
    assert [operation.activation for operation in fused(graph)] == ["RELU"]


def test_pytrees_of_inputs_and_results():
    def function(params, x, y):
        return {"sum": x["a"] @ params + y, "same": y, "constant": params.sum()}

    params, x, y = draw(4, 5), {"a": draw(2, 4)}, draw(2, 5)
    graph, treedef = trace(function, params, x, y)
    graph = optimized(graph)
    constants = {constant: constant.array for constant in graph.constants()}
    got = jax.tree.unflatten(treedef, graph.evaluate(constants, jax.tree.leaves((x, y))))
    expected = function(params, x, y)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-4), got, expected))


def test_layers_in_the_body_of_a_loop(tmp_path):
    params = {"kernel": draw(3, 3, 4, 4), "steps": draw(5, 4)}

    def function(p, x):
        def step(carried, by):
            y = jax.nn.relu(conv(carried, p["kernel"])) / 4 + by
            return y, y.mean((1, 2))

        last, means = lax.scan(step, x, p["steps"], reverse=True)
        return last.mean((1, 2)) + means[0] + lax.fori_loop(0, 2, lambda i, x: conv(x, p["kernel"]) / 4, x)[:, 0, 0]

    inputs = draw(2, 6, 6, 4)
    graph = rewrite(function, params, inputs)
    scans = [node.operation for node in graph.nodes if isinstance(node.operation, Scan)]
    assert [[operation.activation for operation in fused(scan.body)] for scan in scans] == [["RELU"], [None]]
    repetitions = [times for node, times in nodes_and_repetitions(graph) if node.name == "fused_convolution"]
    assert repetitions == [5, 2]
    chosen = choose_lowerings(graph, jax.devices()[0], MeasuredCosts(tmp_path / "costs"), 0.0)
    (got,) = evaluate(chosen, inputs)
    np.testing.assert_allclose(got, function(params, inputs), rtol=1e-4, atol=1e-4)


def test_random_keys_and_effects_stay():
    seen = []

    def function(params, x):
        noise = jax.random.normal(jax.random.key(0), (6,))
        jax.debug.callback(lambda total: seen.append(total), x.sum())
        return (x + noise) @ params

    rewrite(function, draw(6, 4), draw(2, 6))
    jax.effects_barrier()
    assert len(seen) == 2  # the function's and the graph's


def test_views_that_vanish_beside_each_other():
    nchw = ("NCHW", "OIHW", "NCHW")
    params = {"a": draw(8, 4, 3, 3), "b": draw(8, 8, 1, 1), "c": draw(3, 3, 4, 8), "d": draw(3, 3, 4, 1)}

    def squeeze_and_excite(p, x):
        y = conv(x, p["a"], numbers=nchw)
        return y * jax.nn.sigmoid(conv(y.mean((2, 3), keepdims=True), p["b"], numbers=nchw))

    def gated_tokens(p, x):
        tokens, gate = (conv(x, p[name]).reshape(2, 20, -1) for name in "cd")
        return tokens * gate

    rewrite(squeeze_and_excite, params, draw(2, 4, 5, 4))
    rewrite(gated_tokens, params, draw(2, 5, 4, 4))


def test_numbers_beyond_an_integer_saturate_as_in_xla():
    values = np.array([300.0, -1.0, 3e9, 7.9], np.float32)
    for dtype in (jnp.uint8, jnp.int32):
        function = lambda p, x, dtype=dtype: x + p.astype(dtype)  # noqa: E731
        x = np.zeros(4, dtype)
        np.testing.assert_array_equal(cambrian.optimize(function, values)(x), jax.jit(function)(values, x))


def test_a_key_that_a_function_closes_over():
    key = jax.random.key(0)
    executable = cambrian.compile(
        lambda p, x: x @ p + jax.random.normal(key, (5,)), draw(4, 5), jax.ShapeDtypeStruct((4,), "float32")
    )
    assert executable(draw(2, 4)).shape == (2, 5)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_results_keep_their_shape(batch_size):
    params = {"c": draw(3, 3, 4, 8), "h": draw(8, 55), "p": draw(1, 1, 8, 10)}
    x = draw(batch_size, 6, 6, 4)

    def boxes(p, x):
        return (jax.nn.relu(conv(x, p["c"])).mean((1, 2)) @ p["h"]).reshape(-1, 5, 11)

    def head(p, x):
        return conv(jax.nn.relu(conv(x, p["c"])).mean((1, 2), keepdims=True), p["p"])

    for function in (boxes, head):
        executable = cambrian.compile(
            function, params, jax.ShapeDtypeStruct(x.shape[1:], "float32"), batch_size=batch_size
        )
        expected = function(params, x)
        assert executable(x).shape == expected.shape
        np.testing.assert_allclose(executable(x), expected, rtol=1e-4, atol=1e-4)


def test_masked_logits_stay_finite_in_bfloat16():
    params, least = {"a": draw(4, 4), "b": draw(4, 4)}, np.finfo(np.float32).min

    def function(p, x):
        scores = jnp.where(jnp.zeros(4, bool), jax.nn.relu(x @ p["a"]), least)
        return jax.nn.softmax(scores, axis=-1) @ p["b"]

    x = draw(2, 4)
    graph = in_bfloat16(optimized(trace(function, params, x)[0]))
    np.testing.assert_allclose(evaluate(graph, x)[0], function(params, x), rtol=2e-2, atol=2e-2)


def test_complex_constants_are_left_to_xla():
    function = lambda p, x: jnp.exp((x @ p).astype("complex64") * jnp.complex64(1j)).real  # noqa: E731
    rewrite(function, draw(4, 4), draw(2, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda p, x: jax.nn.relu(conv(x, p["same"]) + x).mean((1, 2)) @ p["head"],
        lambda p, x: conv((x[..., :1] - p["mean"]) / 2, p["same"]).mean((1, 2)) @ p["head"],
        lambda p, x: (
            lax.reduce_window(conv(x, p["same"]), -jnp.inf, lax.max, (1, 7, 7, 1), (1, 2, 2, 1), "VALID")
            .reshape(len(x), -1)
            .sum(1, keepdims=True)
            + x.mean((1, 2))
        ),
    ],
)
def test_what_is_no_plain_network_of_layers_is_built_all_the_same(function):
    params = {"same": draw(3, 3, 4, 4), "head": draw(4, 5), "mean": draw(4)}
    x = draw(2, 6, 6, 4)
    executable = cambrian.compile(function, params, jax.ShapeDtypeStruct((6, 6, 4), "float32"), batch_size=2)
    np.testing.assert_allclose(executable(x), function(params, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "function",
    [
        lambda p, x: jax.vmap(lambda frame: conv(frame, p["kernel"]), 1, 1)(x),  # of videos (N, T, H, W, C)
        lambda p, x: jax.vmap(lambda kernel, each: conv(each[None], kernel)[0], (0, 0))(p["kernels"], x[:, 0]),
        lambda p, x: x.reshape(2, -1, order="F") @ p["dense"],
        lambda p, x: x[:, 0, 0, :4] * p["square"].reshape(4, 4, order="F"),
    ],
)
def test_a_reshape_of_another_order_transposes_first(function):
    params = {"kernel": draw(3, 3, 4, 5), "kernels": draw(2, 3, 3, 4, 5), "dense": draw(240, 3), "square": draw(4, 4)}
    rewrite(function, params, draw(2, 3, 4, 5, 4))


def test_integers_divide_as_in_xla():
    numbers = {"of": np.array([7, -7, 7], np.int32), "by": np.array([0, 2, -2], np.int32)}
    rewrite(lambda p, x: x + lax.div(p["of"], p["by"]), numbers, np.zeros(3, np.int32))


def test_an_infinite_factor_is_not_folded_into_a_kernel():
    kernel, x = np.array([[1.0], [-1.0]], np.float32), np.array([[2.0, 1.0], [1.0, 2.0]], np.float32)
    graph = optimized(trace(lambda k, x: (x @ k) * np.float32(np.inf), kernel, x)[0])
    np.testing.assert_array_equal(evaluate(graph, x)[0], [[np.inf], [-np.inf]])


def test_random_keys_that_a_function_closes_over_are_part_of_the_program():
    keys = jax.random.split(jax.random.key(0), 3)
    executable = cambrian.compile(
        lambda p, x: x @ p + jax.random.normal(keys[1], (5,)), draw(4, 5), jax.ShapeDtypeStruct((4,), "float32")
    )
    assert executable(draw(2, 4)).shape == (2, 5)
