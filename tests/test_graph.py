"""Rewritten functions give what JAX gives, and passes recognise arithmetic however it is written."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import cambrian
import cambrian.sharding
from cambrian.models.graph.choose_lowerings import MeasuredCosts, choose_lowerings, fastest, with_lowering
from cambrian.models.graph.constants import compact
from cambrian.models.graph.find_poolings import Pool
from cambrian.models.graph.fused_convolution import FusedConvolution
from cambrian.models.graph.graph import rewritten
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.precision import in_bfloat16
from cambrian.models.graph.scan import Scan, nodes_and_repetitions
from cambrian.models.graph.trace import trace
from cambrian.models.lowerings import LOWERINGS, Window
from cambrian.models.lowerings.onednn import Convolution
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


def test_what_is_read_twice_is_not_fused():
    graph = rewrite(lambda k, x: jax.nn.relu(x @ k) + 2 * (x @ k).sum(), draw(6, 7), draw(3, 6))
    assert len(fused(graph)) == 2  # two products, each read by one chain

    def shared(k, x):
        y = x @ k
        return jax.nn.relu(y) * (y + 1)

    assert [operation.activation for operation in fused(rewrite(shared, draw(6, 7), draw(3, 6)))] == [None]


@pytest.mark.parametrize(
    ("numbers", "kernel", "images"),
    [
        (("NHWC", "HWIO", "NHWC"), (3, 2, 4, 6), (2, 7, 6, 4)),
        (("NCHW", "OIHW", "NCHW"), (6, 4, 3, 2), (2, 4, 7, 6)),
        (("NCHW", "HWIO", "NHWC"), (3, 2, 4, 6), (2, 4, 7, 6)),
        (("CWHN", "OWHI", "HWNC"), (6, 3, 2, 4), (4, 6, 7, 2)),
        (("NWC", "WIO", "NWC"), (3, 4, 6), (2, 7, 4)),
        (("NCW", "OIW", "NCW"), (6, 4, 3), (2, 4, 7)),
        (("NDHWC", "DHWIO", "NDHWC"), (2, 3, 2, 4, 6), (2, 5, 7, 6, 4)),
        (("NCDHW", "OIDHW", "NCDHW"), (6, 4, 3, 2, 3), (2, 4, 6, 5, 7)),
    ],
)
@pytest.mark.parametrize("more", [{}, {"rhs_dilation": 2}, {"stride": 2}, {"padding": (1, 3)}])
def test_every_layout_stride_padding_and_dilation(numbers, kernel, images, more):
    axes = len(images) - 2
    more = {**more}
    if "padding" in more:
        more["padding"] = [more["padding"]] * axes
    if "rhs_dilation" in more:
        more["rhs_dilation"] = (2,) * axes
    graph = rewrite(lambda k, x: jnp.tanh(conv(x, k, numbers=numbers, **more)), draw(*kernel), draw(*images))
    assert [operation.activation for operation in fused(graph)] == ["TANH"]


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_groups(groups):
    graph = rewrite(lambda k, x: conv(x, k, feature_group_count=groups), draw(3, 3, 8 // groups, 16), draw(2, 5, 5, 8))
    assert [operation.groups for operation in fused(graph)] == [groups]


@pytest.mark.parametrize(
    ("einsum", "left", "right"),
    [
        ("nk,km->nm", (3, 4), (4, 5)),
        ("nk,mk->nm", (3, 4), (5, 4)),
        ("nlk,khd->nlhd", (2, 3, 4), (4, 2, 5)),
        ("nlhd,hdk->nlk", (2, 3, 2, 5), (2, 5, 4)),
        ("nhwk,km->nhwm", (2, 3, 4, 5), (5, 6)),
        ("nabck,km->nabcm", (2, 3, 2, 2, 5), (5, 6)),
        ("nkl,km->nml", (2, 4, 3), (4, 5)),
    ],
)
def test_every_dense_layer_is_a_convolution(einsum, left, right):
    graph = rewrite(lambda k, x: jnp.einsum(einsum, x, k), draw(*right), draw(*left))
    assert len(fused(graph)) == 1


def test_padding_becomes_the_convolution_s_own():
    def function(k, x):
        return conv(jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0))), k, padding="VALID")

    graph = rewrite(function, draw(3, 3, 4, 4), draw(1, 6, 6, 4))
    assert [operation.window.padding for operation in fused(graph)] == [((1, 2), (0, 1))]
    assert others(graph) == []
    padded = rewrite(
        lambda k, x: conv(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1.0), k, padding="VALID"),
        draw(3, 3, 4, 4),
        draw(1, 6, 6, 4),
    )
    assert others(padded) == ["pad"]


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 0), (1, 1), (0, 1), (0, 0))])
@pytest.mark.parametrize(("size", "stride"), [((2, 2), (2, 2)), ((3, 2), (1, 2)), ((4, 4), (4, 4))])
def test_poolings_of_images(size, stride, padding):
    x = draw(2, 9, 8, 3) - 2  # negative: padding must be lower
    window = ((1, *size, 1), (1, *stride, 1), padding)

    def function(p, x):
        counts = lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, *window)
        largest = lax.reduce_window(x, -jnp.inf, lax.max, *window)
        return largest * p + lax.reduce_window(x, 0.0, lax.add, *window) / counts

    graph = rewrite(function, np.float32(3), x)
    assert [node.operation.kind for node in graph.nodes if isinstance(node.operation, Pool)] == ["max", "sum"]
    counts = [compact(constant.array) for constant in graph.constants() if constant.size > 1]
    assert all((each.shape[0], each.shape[3]) == (1, 1) for each in counts)
    narrow = in_bfloat16(optimized(trace(lambda p, x: function(p, x @ np.eye(3, dtype="f")), np.float32(3), x)[0]))
    (got,) = evaluate(narrow, x)
    assert np.linalg.norm(got - function(3, x)) < 1e-2 * np.linalg.norm(function(3, x))


@pytest.mark.parametrize("shape", [(2, 9, 3), (2, 5, 6, 7, 3)])
def test_poolings_along_one_and_three_axes(shape):
    axes = len(shape) - 2
    window = ((1, *[3] * axes, 1), (1, *[2] * axes, 1), "SAME")
    graph = rewrite(lambda p, x: lax.reduce_window(x, -jnp.inf, lax.max, *window) * p, draw(), draw(*shape) - 2)
    assert [node.name for node in graph.nodes] == ["pool", "mul"]


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


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["native", "onednn", "onednn_winograd_2x2", "winograd_4x4", "im2col"])
@pytest.mark.parametrize("activation", [None, "GELU_ERF"])
@pytest.mark.parametrize("residual", [False, True])
def test_every_lowering_computes_what_follows(lowering, activation, residual):
    params = {"kernel": draw(3, 3, 16, 16), "bias": draw(16)}

    def function(p, x):
        y = conv(x, p["kernel"]) + p["bias"]
        y = y + x if residual else y
        return jax.nn.gelu(y, approximate=False) if activation else y

    x = draw(2, 6, 6, 16)
    graph = optimized(trace(function, params, x)[0])
    (operation,) = fused(graph)
    if lowering not in operation.candidates("cpu"):
        pytest.skip(f"{lowering} isn't available here")
    graph = rewritten(graph, lambda node: [with_lowering(node, lowering)] if node.name == "fused_convolution" else None)
    assert [each.lowering for each in fused(graph)] == [lowering]
    expected = np.asarray(function(params, x))
    assert np.allclose(evaluate(graph, x)[0], expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_tiny_products_are_left_to_xla_without_measuring(tmp_path):
    graph = optimized(trace(lambda k, x: jnp.tanh(x @ k), draw(8, 8), draw(4, 8))[0])
    costs = MeasuredCosts(tmp_path / "costs.jsonl")
    chosen = choose_lowerings(graph, jax.devices()[0], costs, seconds=60.0)
    assert [operation.lowering for operation in fused(chosen)] == ["matmul"]
    assert costs.milliseconds == {}


def test_costs_are_measured_once_and_kept(tmp_path):
    graph = optimized(trace(lambda k, x: x @ k, draw(256, 256), draw(64, 256))[0])
    costs = MeasuredCosts(tmp_path / "folder" / "costs.jsonl")
    choose_lowerings(graph, jax.devices()[0], costs, seconds=60.0)
    lines = costs.path.read_text().splitlines() if costs.path.exists() else []
    assert len(lines) == len(costs.milliseconds) != 1  # none, or each candidate
    choose_lowerings(graph, jax.devices()[0], costs, seconds=60.0)
    assert costs.path.exists() is bool(lines)
    assert not lines or costs.path.read_text().splitlines() == lines


@pytest.mark.slow
def test_an_optimised_function_stands_inside_the_user_s_own_code():
    params = {"kernel": draw(3, 3, 8, 16), "head": draw(16, 4)}

    def function(p, x, shift):
        return {"logits": jax.nn.silu(conv(x["images"], p["kernel"])).mean((1, 2)) @ p["head"] + shift}

    images, shift = draw(4, 6, 6, 8), draw(4)
    expected = function(params, {"images": images}, shift)["logits"]
    fast = cambrian.optimize(function, params)

    def close(got: jax.Array, expected: jax.Array) -> bool:
        return np.allclose(got, expected, rtol=1e-4, atol=1e-4)

    assert close(fast({"images": images}, shift)["logits"], expected)
    twice = jax.jit(lambda x: 2 * fast({"images": x}, shift)["logits"])
    assert close(twice(images), 2 * expected)
    scanned = jax.jit(lambda x: lax.map(lambda each: fast({"images": each}, shift)["logits"], x[None]))
    assert close(scanned(images)[0], expected)
    mesh = cambrian.sharding.make_mesh(cambrian.MeshShape(2, 2), jax.devices()[:4])
    cut = P(("data", "model"))
    sharded = jax.shard_map(
        lambda x: fast({"images": x}, shift)["logits"], mesh=mesh, in_specs=cut, out_specs=cut, check_vma=False
    )
    assert close(jax.jit(sharded)(images), expected)
    with pytest.raises(cambrian.UsageError, match="precision must be one of"):
        cambrian.optimize(function, params, precision="int3")


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (3, 0))])
@pytest.mark.parametrize("size", [(2, 2), (3, 2), (4, 5)])
@pytest.mark.parametrize("strides", [(2, 2), (3, 2), (1, 4)])
def test_transposed_convolutions_are_computed_by_phases(strides, size, padding):
    kernel, images = draw(*size, 3, 4), draw(2, 5, 4, 3)
    graph = rewrite(lambda k, x: jax.nn.relu(lax.conv_transpose(x, k, strides, padding) + 1), kernel, images)
    (operation,) = fused(graph)
    assert operation.activation == (None if "crop" in others(graph) else "RELU")
    assert "conv_general_dilated" not in others(graph)


def test_a_transposed_convolution_along_one_axis_and_one_that_skips_pixels():
    def along_time(k, x):
        return lax.conv_transpose(x, k, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    assert len(fused(rewrite(along_time, draw(3, 3, 4), draw(2, 5, 3)))) == 1

    def strided(k, x):
        return conv(x, k, stride=3, padding=((1, 1), (1, 1)), lhs_dilation=(2, 2))

    assert others(rewrite(strided, draw(3, 3, 3, 4), draw(2, 5, 5, 3))) == ["conv_general_dilated"]


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


def test_a_lowering_with_wrong_results_is_never_taken(monkeypatch):
    kernel, x = draw(3, 3, 24, 40), draw(2, 7, 9, 24)
    monkeypatch.setattr(Convolution, "pack", lambda _, kernel: kernel[::-1].copy())
    fast = cambrian.optimize(lambda k, x: jax.nn.relu(conv(x, k)), kernel)
    np.testing.assert_allclose(fast(x), jax.nn.relu(conv(x, kernel)), rtol=1e-4, atol=1e-4)
    operation = FusedConvolution(x.shape, 40, Window.square(3, 1, ((1, 1), (1, 1))), activation="RELU")
    costs = MeasuredCosts.of_machine("cpu")
    assert costs.get(dataclasses.replace(operation, lowering="onednn")) == np.inf
    assert fastest(operation, "cpu", costs).lowering != "onednn"


def test_in_a_loop_xla_computes_no_convolution_that_another_can(tmp_path):
    operation = FusedConvolution((2, 7, 9, 24), 40, Window.square(3, 1, ((1, 1), (1, 1))))
    costs = MeasuredCosts(tmp_path / "costs")
    for lowering, milliseconds in (("native", 1.0), ("onednn", 2.0)):
        costs.add(dataclasses.replace(operation, lowering=lowering), milliseconds)
    if LOWERINGS["onednn"].obstacle("cpu") is not None:
        pytest.skip("oneDNN can't be called")
    assert [fastest(operation, "cpu", costs, in_loop).lowering for in_loop in (False, True)] == ["native", "onednn"]


@pytest.mark.parametrize("padding", [[(1, 1), (1, 1)], [(0, 2), (1, 0)]])
@pytest.mark.parametrize("padded_before", [False, True])
def test_a_pointwise_convolution_with_padding_has_a_border(padding, padded_before):
    kernel, x = draw(1, 1, 4, 8), draw(1, 8, 8, 4)

    def function(k, x):
        if not padded_before:
            return conv(x, k, padding=padding) + 1
        return conv(jnp.pad(x, ((0, 0), *padding, (0, 0))), k, padding="VALID") + 1

    rewrite(function, kernel, x)
    np.testing.assert_allclose(cambrian.optimize(function, kernel)(x), function(kernel, x), rtol=1e-4, atol=1e-5)


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


def test_a_key_that_a_function_closes_over(tmp_path):
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


def test_the_precision_that_a_function_asks_for_is_kept():
    for function in (
        lambda k, x: jnp.dot(x, k, precision="highest"),
        lambda k, x: conv(x[:, None, None], k[None, None], precision="highest")[:, 0, 0],
    ):
        (operation,) = fused(rewrite(function, draw(6, 7), draw(3, 6)))
        operation = dataclasses.replace(operation, lowering="native")
        arrays = draw(*operation.in_shape), draw(*operation.kernel_shape), draw(7)
        assert "Precision.HIGHEST" in str(jax.make_jaxpr(operation)(*arrays))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cast_around_an_activation_is_part_of_it(dtype):
    kernel, x = draw(6, 7).astype(dtype), draw(3, 6).astype(dtype)
    wide = lambda k, x: jax.nn.silu((x @ k).astype("float32")).astype(x.dtype)  # noqa: E731
    assert [operation.activation for operation in fused(optimized(trace(wide, kernel, x)[0]))] == ["SWISH"]


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
