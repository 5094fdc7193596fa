"""What makes a function a program, and what doesn't; whole models are in test_user_models.py."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cambrian.sharding import MeshShape, UsageError, compiler_options_of, make_mesh, program_from_function


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshShape(2, 4), jax.devices())


def test_the_reference_computes_in_float32_on_one_device(mesh):
    kernel = np.random.default_rng(0).standard_normal((64, 4)).astype(jnp.bfloat16)
    seen = []

    def function(params, inputs):
        seen.append((params.dtype, inputs.dtype, jax.config.values["jax_default_matmul_precision"]))
        return inputs @ params

    inputs = jax.ShapeDtypeStruct((8, 64), jnp.bfloat16)
    program = program_from_function(function, kernel, inputs, mesh, [("params", P())], name="mine", tolerance=2e-2)
    values = np.random.default_rng(1).standard_normal((8, 64)).astype(jnp.bfloat16)
    outputs = program.reference(values)
    assert seen[-1] == (np.float32, np.float32, "highest") and outputs.dtype == np.float32
    exact = values.astype(np.float64) @ kernel.astype(np.float64)
    np.testing.assert_allclose(outputs, exact, rtol=1e-5, atol=1e-5)


def test_what_a_function_raises_tells_the_shapes_that_it_got(mesh):
    with pytest.raises(TypeError) as caught:
        program_from_function(
            lambda p, x: x @ p,
            np.ones((4, 4), np.float32),
            jax.ShapeDtypeStruct((8, 2, 3), "float32"),
            mesh,
            None,
            name="mine",
        )
    assert any("mine got inputs" in note and "(8, 2, 3)" in note for note in caught.value.__notes__)
    with pytest.raises(AttributeError) as caught:
        program_from_function(lambda p, x: p.x, None, jax.ShapeDtypeStruct((8,), "float32"), mesh, None, name="mine")
    assert any("mine got no params and inputs" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    "function",
    [
        lambda p, x: jax.lax.add(x[:, :, None].astype(jnp.bfloat16), jnp.broadcast_to(p, (8, 4, 4))),
        lambda p, x: jax.lax.scan(lambda h, _: (h @ p, None), x.astype(jnp.bfloat16), None, length=2)[0],
    ],
)
def test_the_reference_of_a_function_that_names_narrow_dtypes_computes_in_them(mesh, function):
    kernel = np.random.default_rng(0).standard_normal((4, 4)).astype(jnp.bfloat16)
    program = program_from_function(function, kernel, jax.ShapeDtypeStruct((8, 4), "float32"), mesh, None, name="mine")
    inputs = np.random.default_rng(1).standard_normal((8, 4), np.float32)
    expected = function(jnp.asarray(kernel), inputs)
    assert program.reference(inputs).dtype == jnp.bfloat16
    np.testing.assert_array_equal(program.reference(inputs), expected)


LARGE = np.ones((64, 32), np.float32)


def holds_weights(params, inputs):
    return inputs @ jnp.asarray(LARGE) + params["bias"]


def holds_weights_in_a_jitted_function(params, inputs):
    return jax.jit(lambda x: x @ LARGE)(inputs) + params["bias"]


def holds_weights_in_a_scan(params, inputs):
    def step(carry, _):
        return jax.lax.cond(carry.sum() > 0, lambda x: x + (inputs @ LARGE).sum(), lambda x: x, carry), None

    return jax.lax.scan(step, inputs[:, :1], None, length=2)[0] + params["bias"]


@pytest.mark.parametrize("function", [holds_weights, holds_weights_in_a_jitted_function, holds_weights_in_a_scan])
def test_weights_held_by_the_function_are_refused(mesh, function):
    params, inputs = {"bias": np.zeros(1, np.float32)}, jax.ShapeDtypeStruct((8, 64), "float32")
    with pytest.raises(UsageError, match=r"parameters must be arguments of the function, .* \(64, 32\) float32"):
        program_from_function(function, params, inputs, mesh, [(".*", P())], name="mine")


def test_small_constants_may_be_held_by_the_function(mesh):
    mean = np.arange(1024, dtype=np.float32)
    inputs = jax.ShapeDtypeStruct((8, 1024), "float32")
    program = program_from_function(lambda _, x: x - mean, {}, inputs, mesh, [], name="mine")
    np.testing.assert_array_equal(program.reference(np.zeros((8, 1024), np.float32))[3], -mean)
    inputs = jax.ShapeDtypeStruct((8, 1025), "float32")
    with pytest.raises(UsageError, match="at most 4096 bytes"):
        program_from_function(lambda _, x: x - np.arange(1025, dtype=np.float32), {}, inputs, mesh, [], name="mine")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"function": lambda p, x: (x, None)}, r"outputs/1 must be one array, .*, got NoneType"),
        ({"function": lambda p, x: {}}, r"outputs must be one array, .* got an empty dict"),
        ({"function": lambda p, x: x.sum()}, r"must be arrays \(8, …\), got .*→ ShapeDtypeStruct\(shape=\(\)"),
        ({"function": lambda p, x: x.T}, r"must be arrays \(8, …\), got .*→ ShapeDtypeStruct\(shape=\(6, 8\)"),
        ({"output_partition_spec": P("data", "model")}, None),
        ({"output_partition_spec": P("data", None, "model")}, r"outputs of shape \(8, 6\): expected .* at most 2"),
        ({"inputs": jax.ShapeDtypeStruct((6, 6), "float32")}, r"inputs of shape \(6, 6\): .* 'data' of 4, got 6"),
        ({"inputs": jax.ShapeDtypeStruct((), "float32")}, r"inputs must have shape \(N, …\)"),
        ({"inputs": jax.ShapeDtypeStruct((0, 6), "float32")}, r"N at least 1, got \(0, 6\)"),
        ({"inputs": jax.ShapeDtypeStruct((8, 6), np.dtype("float64"))}, "float64 without jax_enable_x64"),
        ({"params": {"scale": 2.0}}, "'scale' must be an array, got float"),
        ({"params": {"scale": np.ones(2, np.float64)}}, "'scale' must have a dtype .* got float64"),
        ({"params": {"key": jax.random.key(0)}}, "'key' must be numbers, got key<fry>"),
        ({"params": {"a": {"b": np.ones(2, np.float32)}, "a/b": np.ones(2, np.float32)}}, "got 'a/b' 2 times"),
        ({"rules": []}, r"got 'kernel' of shape \(6, 6\) without one"),
    ],
)
def test_what_makes_no_program_is_refused(mesh, changes, message):
    arguments = {
        "function": lambda p, x: x @ p["kernel"],
        "params": {"kernel": np.eye(6, dtype=np.float32)},
        "inputs": jax.ShapeDtypeStruct((8, 6), "float32"),
        "mesh": mesh,
        "rules": [(".*", P())],
        "name": "mine",
    }
    if message is None:
        assert program_from_function(**arguments | changes).output_spec.partition_spec == P("data", "model")
        return
    with pytest.raises(UsageError, match=message):
        program_from_function(**arguments | changes)


def test_the_mesh_must_be_ours(mesh):
    for strange in (
        jax.make_mesh((2, 4), ("model", "data"), devices=jax.devices()[:8]),
        jax.sharding.Mesh(mesh.devices.T, ("data", "model")),
    ):
        with pytest.raises(UsageError, match="expected a mesh from make_mesh"):
            program_from_function(lambda _, x: x, {}, jax.ShapeDtypeStruct((8, 4), "float32"), strange, [], name="mine")


@pytest.mark.parametrize(
    ("custom_calls", "side_by_side", "flags", "options"),
    [
        (("__onednn$convolution",), False, "", {"xla_backend_optimization_level"}),
        (("__onednn$convolution",), False, "--xla_backend_optimization_level=2", set()),
        (("__onednn$convolution",), True, "", {"xla_backend_optimization_level", "xla_cpu_scheduler_type"}),
        ((), True, "", {"xla_cpu_scheduler_type"}),
        ((), True, "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_DEFAULT", set()),
        ((), False, "", set()),
    ],
)
def test_options_suit_what_is_compiled_at_each_start_and_runs_side_by_side(
    monkeypatch, custom_calls, side_by_side, flags, options
):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(sys.modules[compiler_options_of.__module__], "launches_run_side_by_side", lambda: side_by_side)
    assert set(found := compiler_options_of(custom_calls)) == options
    assert jax.jit(lambda x: x @ x).lower(np.ones((2, 2))).compile(found)(np.eye(2)).tolist() == [[1, 0], [0, 1]]
