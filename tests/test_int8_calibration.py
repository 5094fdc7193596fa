"""int8: scales by calibration, channels rescaled, and the budget of accuracy."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cambrian.models.graph.equalize import equalize
from cambrian.models.graph.observe import METHODS, Observed, evaluator, largest_of_channels, observe
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.quantization import Calibration, _Judge, quantized
from cambrian.models.graph.quantize import quantizable, quantize as quantize_pass
from cambrian.models.graph.trace import trace
from cambrian.models.lowerings.onednn_forms import int8_obstacle
from cambrian.sharding import UsageError
from graph_cases import conv
from unsharded import relative_error

pytestmark = pytest.mark.skipif(int8_obstacle("cpu") is not None, reason=str(int8_obstacle("cpu")))

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (24, 32, 32, 3), np.uint8)


def test_scales_by_each_rule():
    sample = np.concatenate([np.linspace(0, 1, 100_000, dtype=np.float32), np.array([100.0], np.float32)])
    scales = {method: Observed(0.0, 100.0, sample).scale(method).scale for method in METHODS}
    assert scales["minmax"] == pytest.approx(100 / 255)
    assert scales["percentile"] == pytest.approx(1 / 255, rel=1e-3)

    def error(scale: float) -> float:
        return float(np.square(np.clip(np.rint(sample / scale), 0, 255) * scale - sample).mean())

    assert error(scales["mse"]) <= min(error(scales["minmax"]), error(scales["percentile"]))
    signed = Observed(-3.0, 2.0, np.linspace(-3, 2, 1000, dtype=np.float32)).scale("minmax")
    assert signed == (pytest.approx(3 / 127), "int8", 0)
    assert Observed(0.0, 0.0, np.zeros(3, np.float32)).scale("mse").scale > 0  # an activation that is always off


def test_every_channel_is_observed():
    params = [np.zeros((8, 96), np.float32), np.arange(96, dtype=np.float32)]
    shape = jax.ShapeDtypeStruct((128, 8), "float32")
    graph = optimized(trace(lambda p, x: jax.nn.relu(x @ p[0] + p[1]) @ p[0].T, params, shape)[0])
    (node,) = quantizable(graph)
    _, observed = observe(graph, [node], [[np.zeros(shape.shape, np.float32)]])
    assert {*observed[node.output].sample.tolist()} == {*range(96)}


def test_rescaled_channels_give_the_same_and_lose_less():
    params = {name: RANDOM.standard_normal((64, 64), np.float32) / 8 for name in "abc"}
    uneven = np.logspace(-2, 2, 64, dtype=np.float32)
    params["a"], params["b"] = params["a"] * uneven, params["b"] / uneven[:, None]

    def function(params, x):
        return jax.nn.relu(jax.nn.relu(x @ params["a"]) @ params["b"]) @ params["c"]

    inputs = RANDOM.standard_normal((32, 64), np.float32)
    graph = optimized(trace(function, params, jax.ShapeDtypeStruct((32, 64), "float32"))[0])
    exact = np.asarray(function(params, inputs))

    def error(graph) -> float:
        nodes = quantizable(graph)
        _, observed = observe(graph, nodes, [[inputs]])
        made = quantize_pass(graph, {value: found.scale("minmax") for value, found in observed.items()}, {*nodes})
        return relative_error(evaluator(made)(inputs)[0], exact)

    equalized = equalize(graph, largest_of_channels(graph, [[inputs]]))
    assert relative_error(evaluator(equalized)(inputs)[0], exact) <= 1e-5
    assert error(equalized) < 0.02 < 0.2 < error(graph)


def test_channels_are_rescaled_alike_in_each_build():
    params, shape = [RANDOM.standard_normal((16, 16), np.float32) for _ in range(6)], jax.ShapeDtypeStruct((2, 16), "f")

    def function(params, x):
        for kernel in params:
            x = jnp.maximum(x @ kernel, 0)
        return x

    graphs = [optimized(trace(function, params, shape)[0]) for _ in range(6)]
    made = [equalize(graph, {}).constants() for graph in graphs]
    for first, *others in zip(*made, strict=True):
        assert all((other.array == first.array).all() for other in others)


def function_with_a_layer_that_loses() -> tuple:
    """A classifier one of whose layers has an outlier in its kernel, so that 8 bits leave nothing of the rest.

    Another layer gives zeros alone.
    """
    params = {name: RANDOM.standard_normal((64, 64), np.float32) / 8 for name in "abcdef"}
    params["a"][:, 0], params["b"][0, 0] = 0.0, 2000.0  # which multiplies zeros alone
    params["f"][:] = 0.0

    def function(params, x):
        a = jax.nn.relu(x @ params["a"])
        f = jax.nn.relu(a @ params["f"])
        b = jax.nn.relu(a @ params["b"])
        c = jax.nn.relu(b @ params["c"]) + f
        return c @ params["d"] + (jnp.tanh(a) + jnp.tanh(b)) @ params["e"]  # tanh fixes the scales of a and b

    return function, params


def test_layers_stay_in_float32_until_the_budget_holds():
    function, params = function_with_a_layer_that_loses()
    inputs = RANDOM.standard_normal((64, 64), np.float32)
    graph = optimized(trace(function, params, jax.ShapeDtypeStruct((16, 64), "float32"))[0])
    loose = quantized(graph, Calibration(inputs, "noise", max_top1_drop=100.0))
    assert loose.facts["float32_layers"] == [] and loose.facts["top1_drop"] > 10
    found = quantized(graph, Calibration(inputs, "noise", max_top1_drop=5.0))
    assert found.facts["float32_layers"] == ["b"] and found.facts["top1_drop"] <= 5
    assert found.notes == ("1 of 5 layers stay in float32, to lose at most 5 points of top-1: b",)
    with pytest.raises(UsageError, match="int8 loses more top-1 than max_top1_drop allows"):
        quantized(graph, Calibration(inputs, "noise", max_top1_drop=-1.0))


@pytest.mark.parametrize(("count", "lost", "budget"), [(200, 1, 0.5), (1000, 3, 0.3), (600, 3, 0.5)])
def test_a_loss_of_the_whole_budget_is_within_it(count, lost, budget):
    def outputs(num_right: int) -> np.ndarray:
        return np.eye(2)[(np.arange(count) < num_right).astype(int)]

    labels = np.ones(count, int)
    drops = {_Judge([outputs(right)], labels).top1_drop([outputs(right - lost)]) for right in range(lost, count + 1)}
    assert drops == {budget}


@pytest.mark.parametrize(
    "inputs, message",
    [
        (IMAGES[:15], "int8 needs at least 16 calibration inputs, got 15: noise"),
        (np.repeat(IMAGES[:1], 20, axis=0), "int8 needs calibration inputs that differ, got equal ones: noise"),
        (np.full((16, 4), np.nan), "int8 needs calibration inputs of finite numbers, got NaN or infinity: noise"),
        ([IMAGES, IMAGES[:20]], "int8 needs as many calibration inputs in each array, got 20 and 24: noise"),
        ({"mask": np.ones((16, 4)), "x": np.full((16, 4), np.inf)}, "finite numbers, got NaN or infinity: noise"),
        ({"mask": np.ones((16, 4)), "x": np.zeros((16, 4))}, "inputs that differ, got equal ones: noise"),
    ],
)
def test_bad_calibration_is_refused(inputs, message):
    with pytest.raises(UsageError, match=message):
        Calibration(inputs, "noise")


@pytest.mark.parametrize(
    "shape, given, dtype",
    [((16, 8, 8), "float32", "float32"), ((16, 8, 8, 1), "float32", "uint8"), ((16, 8, 8, 1), "uint8", "float32")],
)
def test_inputs_that_are_not_the_networks_are_refused(shape, given, dtype):
    def function(params, x):
        return conv(conv(x.astype(np.float32), params[0]), params[1])

    params = [np.ones((1, 1, 1, 4), np.float32), np.ones((1, 1, 4, 4), np.float32)]
    graph = optimized(trace(function, params, jax.ShapeDtypeStruct((4, 8, 8, 1), dtype))[0])
    got = re.escape(f"{shape} {given}: noise")
    with pytest.raises(UsageError, match=rf"int8 needs calibration inputs \(M, 8, 8, 1\) {dtype}, got {got}"):
        quantized(graph, Calibration(RANDOM.uniform(0, 9, shape).astype(given), "noise"))


def function_of_arrays(params, inputs):
    """Outputs: classes, a second head of them, the most probable class, and pixels."""
    x = jax.nn.relu(conv(inputs["image"], params["stem"])) * inputs["mask"].astype(np.float32)[:, None, None, None]
    x = jax.nn.relu(conv(x, params["inner"]))
    both = jnp.concatenate([x.mean((1, 2)), jax.nn.relu(inputs["facts"] @ params["facts"])], axis=1)
    both = jax.nn.relu(both @ params["both"])
    heads = both @ params["first head"], both @ params["second head"]
    return {"heads": heads, "best": heads[0].argmax(axis=1), "pixels": conv(x, params["pixels"])}


PARAMS_OF_ARRAYS = {
    name: RANDOM.standard_normal(shape, np.float32) / math.prod(shape[:-1]) ** 0.5
    for name, shape in {
        "stem": (3, 3, 3, 32),
        "inner": (3, 3, 32, 32),
        "facts": (8, 32),
        "both": (64, 32),
        "first head": (32, 10),
        "second head": (32, 7),
        "pixels": (1, 1, 32, 2),
    }.items()
}
ARRAYS = {
    "image": RANDOM.standard_normal((40, 8, 8, 3), np.float32),
    "facts": RANDOM.standard_normal((40, 8), np.float32),
    "mask": np.ones(40, np.int32),
}


@pytest.fixture(scope="module")
def quantized_function_of_arrays():
    graph = optimized(
        trace(
            function_of_arrays,
            PARAMS_OF_ARRAYS,
            jax.tree.map(lambda array: jax.ShapeDtypeStruct((16, *array.shape[1:]), array.dtype), ARRAYS),
        )[0]
    )
    function = functools.partial(function_of_arrays, PARAMS_OF_ARRAYS)
    return graph, quantized(graph, Calibration(ARRAYS, "noise", max_top1_drop=100.0), function)


def test_several_arrays_in_and_out(quantized_function_of_arrays):
    _, found = quantized_function_of_arrays
    assert [*found.facts["scales"]] == ["stem", "inner", "facts", "both"]  # heads keep float32
    exact, got = function_of_arrays(PARAMS_OF_ARRAYS, ARRAYS), found.reference(ARRAYS)
    assert jax.tree.structure(got) == jax.tree.structure(exact)
    pairs = [
        (got["heads"][0], exact["heads"][0]),
        (got["heads"][1], exact["heads"][1]),
        (got["pixels"], exact["pixels"]),
    ]
    errors = [relative_error(one, np.asarray(other)) for one, other in pairs]
    assert min(errors) > 1e-4 and max(errors) < 0.05
    agreements = [np.mean(one.argmax(1) == np.argmax(other, axis=1)) for one, other in pairs[:2]]
    assert found.facts["top1_agreement"] == min(agreements)
    assert found.facts["top1_drop"] == pytest.approx(100 * (1 - min(agreements)))
    # Classes that differ in one of 40 samples are an error of (1 / 40)².
    assert found.facts["relative_error"] == pytest.approx(max(*errors, (1 - agreements[0]) ** 2), rel=1e-3)


def test_the_logits_that_lose_most_top1_count():
    exact, integers = np.eye(4), np.eye(4, dtype=int)
    judge = _Judge([exact, exact, integers, np.ones((4, 2, 2))], None)
    got = [exact, exact[[0, 0, 2, 3]], 1 - integers, np.zeros((4, 2, 2))]
    assert (judge.top1_agreement(got), judge.top1_drop(got)) == (0.75, 25)


@pytest.mark.parametrize(
    "inputs, message",
    [
        (
            {**ARRAYS, "facts": ARRAYS["image"]},
            r"calibration inputs/facts \(M, 8\) float32, got \(40, 8, 8, 3\) float32",
        ),
        (ARRAYS["image"], "int8 needs calibration inputs for each of the network's 3, got 1 arrays: noise"),
    ],
)
def test_arrays_that_are_not_the_networks_are_refused(inputs, message, quantized_function_of_arrays):
    with pytest.raises(UsageError, match=message):
        quantized(quantized_function_of_arrays[0], Calibration(inputs, "noise"))


def test_inputs_of_another_width_are_cast():
    params = [np.ones((64, 64), np.float32), np.ones((64, 64), np.float32)]
    graph = optimized(
        trace(lambda p, x: jax.nn.relu(x @ p[0]) @ p[1], params, jax.ShapeDtypeStruct((4, 64), "float32"))[0]
    )
    inputs = RANDOM.standard_normal((16, 64))
    facts = [quantized(graph, Calibration(inputs.astype(dtype), "noise")).facts for dtype in ("float32", "float64")]
    assert facts[0]["scales"] == facts[1]["scales"]
