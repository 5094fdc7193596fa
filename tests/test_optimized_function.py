"""`cambrian.optimize`: functions for the user's own code, compared with the function as it is."""

import contextlib
import functools
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import cambrian
from cambrian.models.graph import comparison, optimized_function
from cambrian.models.graph.choose_lowerings import MeasuredCosts
from cambrian.models.graph.comparison import deviation
from cambrian.models.graph.graph import Constant, Graph, Node, Value
from cambrian.models.graph.optimized_function import OptimizedFunction
from graph_cases import conv, draw


class Pair(NamedTuple):
    good: jax.Array
    bad: jax.Array


def set_gain(monkeypatch, gain: float) -> None:
    """Sets how many times as fast as the function itself the rewritten one is measured."""
    monkeypatch.setattr(optimized_function, "median_seconds", lambda launches: {"stock": gain, "rewritten": 1.0})


@pytest.mark.slow
def test_an_optimised_function_stands_inside_the_user_s_own_code(monkeypatch):
    set_gain(monkeypatch, 2.0)
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
    assert fast.notes == []
    with pytest.raises(cambrian.UsageError, match="precision must be one of"):
        cambrian.optimize(function, params, precision="int3")


@pytest.mark.parametrize(("gain", "is_rewritten"), [(1.03, True), (1.01, False)])
def test_what_is_not_faster_is_computed_as_it_is(monkeypatch, gain, is_rewritten):
    set_gain(monkeypatch, gain)
    kernel, x = draw(3, 3, 4, 8), draw(2, 6, 6, 4)
    fast = cambrian.optimize(lambda k, x: jax.nn.relu(conv(x, k)), kernel)
    np.testing.assert_allclose(fast(x), jax.nn.relu(conv(x, kernel)), rtol=1e-4, atol=1e-5)
    if is_rewritten:
        assert fast.notes == []
    else:
        (note,) = fast.notes
        assert note == (
            "float32[2, 6, 6, 4]: computed as JAX compiles it: the optimised function was measured 1.01 times as fast"
        )
        jax.grad(lambda x: fast(x).sum())(x)  # as the function itself can


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_wrong_results_are_never_given(monkeypatch, precision):
    set_gain(monkeypatch, 2.0)
    monkeypatch.setattr(optimized_function, "optimized", lambda graph: half_of(graph))
    kernel, x = draw(4, 8), draw(2, 4)
    fast = cambrian.optimize(lambda k, x: x @ k, kernel, precision=precision)
    if precision == "bfloat16":
        with pytest.raises(cambrian.UsageError, match="must be within 0.02 of the function's own, got"):
            fast(x)
    else:
        within = "the optimised function's outputs must be within 0.0001 of its own, got a relative error of 5.0e-01$"
        with pytest.warns(UserWarning, match=f"computed as JAX compiles it: {within}"):
            got = fast(x)
        np.testing.assert_allclose(got, x @ kernel, rtol=1e-5, atol=1e-5)


def half_of(graph):
    """A wrong rewriting: each constant is halved."""

    def read(value: Value) -> Value:
        return Constant.of(value.array / 2) if isinstance(value, Constant) else value

    nodes = [Node(node.operation, tuple(map(read, node.inputs)), node.outputs) for node in graph.nodes]
    return Graph(graph.inputs, tuple(nodes), graph.outputs)


def test_side_effects_happen_once_and_random_keys_are_taken():
    seen = []

    def function(p, x):
        jax.debug.callback(lambda total: seen.append(total), x.sum())
        return x @ p

    kernel, x = draw(4, 8), draw(2, 4)
    fast = cambrian.optimize(function, kernel)
    np.testing.assert_allclose(fast(x), x @ kernel, rtol=1e-5, atol=1e-5)
    jax.effects_barrier()
    assert len(seen) == 1
    assert "side effects" in fast.notes[0]
    noisy = cambrian.optimize(lambda p, x, key: x @ p + jax.random.normal(key, (8,)), kernel)
    key = jax.random.key(1)
    np.testing.assert_allclose(noisy(x, key), x @ kernel + jax.random.normal(key, (8,)), rtol=1e-5, atol=1e-5)


def test_a_batch_of_any_size_is_computed_as_it_is():
    kernel = draw(4, 8)
    fast = cambrian.optimize(lambda p, x: x @ p, kernel)
    (samples,) = jax.export.symbolic_shape("samples")
    exported = jax.export.export(jax.jit(fast))(jax.ShapeDtypeStruct((samples, 4), "float32"))
    np.testing.assert_allclose(exported.call(x := draw(3, 4)), x @ kernel, rtol=1e-5, atol=1e-5)
    assert "float32[samples, 4]: computed as JAX compiles it: it takes random keys or shapes without" in fast.notes[0]


@pytest.mark.parametrize("transform", [jax.jit, lambda function: jax.grad(lambda p, x: function(p, x).sum())])
def test_parameters_that_are_traced_are_refused(transform):
    called = transform(lambda p, x: cambrian.optimize(lambda p, x: x @ p["kernel"], p)(x))
    with pytest.raises(cambrian.UsageError, match="parameters must have values, got traced ones"):
        called({"kernel": draw(4, 8)}, draw(2, 4))


def test_side_effects_in_loops_happen_as_often_as_the_function_has_them():
    seen = []

    def step(_, carried):
        jax.debug.callback(seen.append, carried.sum())
        return carried + 1

    def function(p, x):
        jax.lax.fori_loop(0, 3, step, x)  # for its side effects alone
        return x @ p

    kernel, x = draw(4, 8), draw(2, 4)
    fast = cambrian.optimize(function, kernel)
    executable = cambrian.compile(function, kernel, jax.ShapeDtypeStruct((4,), "float32"), batch_size=2)
    for call in fast, executable:
        jax.effects_barrier()
        seen.clear()
        np.testing.assert_allclose(call(x), x @ kernel, rtol=1e-5, atol=1e-5)
        jax.effects_barrier()
        assert len(seen) == 3
    assert "side effects" in fast.notes[0]


@pytest.mark.parametrize(
    ("function", "more"),
    [
        (lambda p, x, key: x @ p + jax.random.normal(key, (8,)), [jax.random.key(1)]),
        (lambda p, x: (jax.debug.callback(lambda _: None, x), x @ p)[1], []),
    ],
)
def test_what_is_not_computed_in_bfloat16_as_asked_is_a_warning(function, more):
    kernel, x = draw(4, 8), draw(2, 4)
    fast = cambrian.optimize(function, kernel, precision="bfloat16")
    with pytest.warns(UserWarning, match="computed as JAX compiles it, in its own precision: it takes random keys"):
        got = fast(x, *more)
    np.testing.assert_allclose(got, function(kernel, x, *more), rtol=1e-5, atol=1e-5)
    assert len(fast.notes) == 1
    fast(x, *more)  # once for each shape


@pytest.mark.parametrize(
    "call",
    [
        lambda function, kernel: cambrian.optimize(function, kernel, precision="bfloat16")(draw(2, 4)),
        lambda function, kernel: cambrian.compile(
            function, kernel, jax.ShapeDtypeStruct((4,), "float32"), batch_size=2, precision="bfloat16"
        ),
    ],
)
def test_what_is_infinite_for_random_inputs_is_refused_in_bfloat16(call):
    with pytest.raises(cambrian.UsageError, match="got some that aren't finite for random inputs; compute in float32"):
        call(lambda p, x: jnp.where(x @ p > 0, x @ p, -jnp.inf), draw(4, 8))


@pytest.mark.parametrize(
    ("results", "path"), [(lambda good, bad: {"hidden": good, "logits": [good, bad]}, "logits/1"), (Pair, "bad")]
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_of_several_outputs_the_one_that_deviates_is_named(monkeypatch, results, path, precision):
    set_gain(monkeypatch, 2.0)
    monkeypatch.setattr(optimized_function, "optimized", lambda graph: half_of(graph))
    kernel, x = draw(4, 8), draw(2, 4)
    fast = cambrian.optimize(lambda k, x: results(x, x @ k), kernel, precision=precision)
    message = f"got a relative error of 5.0e-01 in outputs/{path}"
    if precision == "bfloat16":
        with pytest.raises(cambrian.UsageError, match=f"within 0.02 of the function's own, {message}; compute in"):
            fast(x)
    else:
        with pytest.warns(UserWarning, match=f"within 0.0001 of its own, {message}$"):
            fast(x)


def test_what_isn_t_a_number_deviates_most():
    nan, far, close = np.full(3, np.nan), np.ones(3), np.full(3, 1.001)
    expected = {"nan": np.ones(3), "far": np.zeros(3), "close": np.ones(3)}
    found = deviation({"nan": nan, "far": far, "close": close}, expected)
    assert str(found) == "some that aren't finite for random inputs in outputs/nan"
    assert deviation({"far": far, "close": close}, {name: expected[name] for name in ("far", "close")}).path == "far"
    assert deviation([], []).error == 0


def test_threads_that_call_at_once_choose_once(monkeypatch):
    chosen, shown = [], []

    def choose_slowly(self, inputs):
        chosen.append(inputs)
        time.sleep(0.1)
        return self._function

    monkeypatch.setattr(OptimizedFunction, "_choose", choose_slowly)

    @contextlib.contextmanager
    def show():
        shown.append(True)
        yield

    fast = OptimizedFunction(lambda x: 2 * x, None, "float32", jax.devices()[0], show)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(fast, [draw(3)] * 4))
    assert len(results) == 4 and len(chosen) == len(shown) == 1


@pytest.mark.parametrize("function", [lambda p, x: jnp.log(x @ p), lambda p, x: jnp.where(x @ p > 0, x @ p, -jnp.inf)])
def test_what_is_infinite_for_random_inputs_is_computed_as_it_is(function):
    kernel, x = draw(4, 8), draw(2, 4)
    fast = cambrian.optimize(function, kernel)
    with pytest.warns(UserWarning, match="its outputs can't be compared: got some that aren't finite"):
        got = fast(x)
    np.testing.assert_allclose(got, function(kernel, x), rtol=1e-5)


@pytest.mark.parametrize("place", [lambda mesh: jax.devices()[1], lambda mesh: NamedSharding(mesh, P())])
def test_parameters_may_lie_on_any_devices(monkeypatch, place):
    set_gain(monkeypatch, 2.0)
    mesh = cambrian.sharding.make_mesh(cambrian.MeshShape(2, 2), jax.devices()[:4])
    kernel, x = draw(4, 8), draw(2, 4)
    fast = cambrian.optimize(lambda k, x: x @ k, jax.device_put(kernel, place(mesh)))
    np.testing.assert_allclose(fast(x), x @ kernel, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis_type", list(AxisType)[:2])
@pytest.mark.parametrize("in_body", [False, True])
def test_a_mesh_in_context_changes_nothing(monkeypatch, axis_type, in_body):
    set_gain(monkeypatch, 2.0)
    monkeypatch.setattr(MeasuredCosts, "get", lambda *_: None)  # so that each call measures
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:2])
    kernel, x = draw(3, 3, 8, 16), draw(2, 6, 6, 8)
    fast = cambrian.optimize(lambda k, x: conv(x, k), kernel)
    cut = jax.shard_map(fast, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    placed = jax.device_put(x, NamedSharding(mesh, P("data" if in_body else None)))
    with jax.set_mesh(mesh):
        got = jax.jit(cut if in_body else fast)(placed)
    np.testing.assert_allclose(got, conv(x, kernel), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("check_vma", [False, True])
def test_a_function_may_cut_its_batch_itself(monkeypatch, check_vma):
    set_gain(monkeypatch, 2.0)
    mesh = cambrian.sharding.make_mesh(cambrian.MeshShape(1, 2), jax.devices()[:2])
    cut = P("data")

    def function(kernel, x):
        mean = jax.shard_map(
            lambda x: (x @ kernel).mean(1), mesh=mesh, in_specs=cut, out_specs=cut, check_vma=check_vma
        )
        return mean(x)

    kernel, x = draw(4, 8), draw(2, 4)
    fast = cambrian.optimize(function, kernel)
    np.testing.assert_allclose(fast(x), (x @ kernel).mean(1), rtol=1e-5, atol=1e-5)


def test_a_batch_may_have_no_samples():
    fast = cambrian.optimize(lambda p, x: x + jnp.broadcast_to(p, (len(x), 8)).reshape(len(x), 2, 4), draw(8))
    assert fast(draw(0, 2, 4)).shape == (0, 2, 4) and fast.notes == []


def test_complex_results_are_compared_as_such():
    kernel, x = draw(4, 8), draw(2, 4)
    fast = cambrian.optimize(lambda p, x: jnp.fft.fft(x @ p), kernel)
    np.testing.assert_allclose(fast(x), np.fft.fft(x @ kernel), rtol=1e-4, atol=1e-4)


def test_of_integers_a_few_may_differ():
    masks = np.random.default_rng(0).integers(0, 21, (2, 500), np.int32)
    nearly_tied = masks.copy()
    nearly_tied[0, 0] += 1
    assert deviation({"mask": nearly_tied}, {"mask": masks}).error == pytest.approx(1e-6)
    assert deviation(masks[::-1], masks).error > 0.1
    assert deviation(masks[:0], masks[:0]).error == 0
    assert deviation(np.full(2, 101, np.uint8), np.full(2, 100, np.uint8)).error == pytest.approx(1e-2)


def test_a_launch_that_was_interrupted_once_is_not_taken_for_slow(monkeypatch):
    taken = {"stock": [1.0] * 6, "rewritten": [20.0, *[0.5] * 6], "slow": [9.0, 8.0]}
    launches = {key: functools.partial(times.pop, 0) for key, times in taken.items()}
    monkeypatch.setattr(comparison, "_seconds", lambda launch: launch())
    assert comparison.median_seconds(launches) == {"stock": 1.0, "rewritten": 0.5, "slow": 8.0}


def test_short_launches_are_timed_more_often(monkeypatch):
    taken = {"stock": itertools.chain([2e-3] * 10, itertools.repeat(1e-3)), "rewritten": itertools.repeat(1e-3)}
    launches = {key: functools.partial(next, times) for key, times in taken.items()}
    monkeypatch.setattr(comparison, "_seconds", lambda launch: launch())
    assert comparison.median_seconds(launches) == {"stock": 1e-3, "rewritten": 1e-3}


def test_what_is_rewritten_is_never_differentiated(monkeypatch):
    set_gain(monkeypatch, 2.0)
    kernel, x = draw(4, 5), draw(2, 4)
    fast = cambrian.optimize(lambda k, x: jax.lax.stop_gradient(x @ k) * (x @ k), kernel)
    for derivative in (jax.grad, jax.jacfwd):
        with pytest.raises(TypeError, match="a rewritten function can't be differentiated"):
            derivative(lambda x: fast(x).sum())(x)


@pytest.mark.parametrize(("x", "scalar"), [(jnp.ones(3, "bfloat16"), 2.0), (jnp.full(3, 120, "int8"), 100)])
def test_python_scalars_take_the_dtype_of_what_they_meet(monkeypatch, x, scalar):
    set_gain(monkeypatch, 2.0)
    fast = cambrian.optimize(lambda p, x, y: x + y, {})
    np.testing.assert_array_equal(fast(x, scalar), x + scalar)
    assert fast(x, scalar).dtype == x.dtype
    assert fast.notes == []
