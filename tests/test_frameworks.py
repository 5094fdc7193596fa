"""Small models of JAX's libraries give what their library gives, and most of their layers are taken."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import warnings
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import cambrian
from cambrian.models.frameworks import as_function
from cambrian.models.graph.fused_convolution import FusedConvolution
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.precision import in_bfloat16
from cambrian.models.graph.trace import trace

RANDOM = np.random.default_rng(0)


def images(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, np.float32)


def check(model, params, inputs: np.ndarray, *, least_taken: int) -> None:
    """The optimised graph gives the model's outputs in float32, and about so in bfloat16."""
    function, params = as_function(model, params)
    expected = np.asarray(jax.jit(function)(params, inputs))
    traced, _ = trace(function, params, inputs)
    wide = optimized(traced)
    assert sum(isinstance(node.operation, FusedConvolution) for node in wide.nodes) >= least_taken
    for graph, tolerance in ((wide, 1e-5), (in_bfloat16(wide), 2e-2)):
        constants = {constant: constant.array for constant in graph.constants()}
        (got,) = jax.jit(lambda x, graph=graph, constants=constants: graph.evaluate(constants, [x]))(inputs)
        assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.slow
def test_a_network_of_keras():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras's own
        import keras

        keras.utils.set_random_seed(0)
        arguments: Any = {"weights": None, "classes": 5, "classifier_activation": None, "alpha": 0.25}
        model = keras.applications.MobileNet((32, 32, 3), **arguments)
    check(model, None, images(2, 32, 32, 3), least_taken=28)


@pytest.mark.slow
def test_a_module_of_equinox_takes_one_sample():
    import equinox as eqx

    keys = jax.random.split(jax.random.key(0), 3)
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.silu),
            eqx.nn.Conv2d(8, 8, 3, stride=2, groups=2, key=keys[1]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Dropout(0.5),
            eqx.nn.AvgPool2d(2, 2),
            eqx.nn.Lambda(lambda x: x.reshape(-1)),
            eqx.nn.Linear(8 * 3 * 3, 4, key=keys[2]),
        ]
    )
    check(model, None, images(2, 3, 14, 14), least_taken=3)


@pytest.mark.slow
def test_a_module_of_equinox_with_state():
    import equinox as eqx

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm

        def __init__(self):
            self.conv = eqx.nn.Conv2d(3, 8, 3, padding=1, key=jax.random.key(0))
            self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")

        def __call__(self, x, state):
            y, state = self.norm(self.conv(x), state)
            return jax.nn.relu(y).mean(axis=(1, 2)), state

    with jax.numpy_dtype_promotion("standard"):  # which Equinox relies on
        model, state = eqx.nn.make_with_state(Net)()
        train = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        _, state = train(images(8, 3, 8, 8), state)
        x = images(2, 3, 8, 8)
        expected = jax.vmap(lambda sample: eqx.nn.inference_mode(model)(sample, state)[0])(x)
        executable = cambrian.compile(model, state, jax.ShapeDtypeStruct((3, 8, 8), "float32"), batch_size=2)
        for got in (executable(x), cambrian.optimize(model, state)(x)):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("with_key", [True, False])
def test_a_transform_of_haiku(with_key):
    import haiku as hk

    def network(x):
        x = hk.Conv2D(8, 3, stride=2)(x)
        x = hk.BatchNorm(True, True, 0.9)(x, is_training=hk.running_init())
        return hk.nets.MLP([16, 4], activation=jax.nn.gelu)(jax.nn.relu(x).mean((1, 2)))

    transform = hk.transform_with_state(network)
    x = images(2, 8, 8, 3)
    state = transform.init(jax.random.key(0), x)
    check(transform if with_key else hk.without_apply_rng(transform), state, x, least_taken=3)
    stateless = hk.transform(lambda x: hk.nets.MLP([8, 4])(x))
    params = stateless.init(jax.random.key(0), images(2, 6))
    check(stateless if with_key else hk.without_apply_rng(stateless), params, images(2, 6), least_taken=2)


@pytest.mark.slow
def test_a_model_may_take_several_inputs():
    import equinox as eqx
    import haiku as hk

    class OfNnx(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

        def __call__(self, x, shift):
            return self.dense(x) + shift

    class OfLinen(nn.Module):
        @nn.compact
        def __call__(self, x, shift):
            return nn.Dense(3)(x) + shift

    class OfEquinox(eqx.Module):
        dense: eqx.nn.Linear

        def __call__(self, x, shift):
            return self.dense(x) + shift

    x, shift = images(2, 4), images(2, 3)
    variables = OfLinen().init(jax.random.key(0), x, shift)
    of_haiku = hk.transform(lambda x, shift: hk.Linear(3)(x) + shift)
    params = of_haiku.init(jax.random.key(0), x, shift)
    of_equinox = OfEquinox(eqx.nn.Linear(4, 3, key=jax.random.key(0)))
    for model, values, expected in [
        (OfNnx(), None, OfNnx()(x, shift)),
        (OfLinen(), variables, OfLinen().apply(variables, x, shift)),
        (of_haiku, params, of_haiku.apply(params, None, x, shift)),
        (of_equinox, None, jax.vmap(of_equinox)(x, shift)),
    ]:
        function, arrays = as_function(model, values)
        np.testing.assert_allclose(function(arrays, x, shift), expected, rtol=1e-4, atol=1e-5)


class MixerBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x).swapaxes(1, 2)
        y = nn.Dense(y.shape[-1])(nn.gelu(nn.Dense(16)(y))).swapaxes(1, 2)
        x = x + y
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (4, 4), strides=4)(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for _ in range(2):
            x = MixerBlock()(x)
        return nn.Dense(4)(nn.LayerNorm()(x).mean(1))


@pytest.mark.slow
def test_a_network_of_linen():
    inputs = images(2, 16, 16, 3)
    check(Mixer(), jax.jit(Mixer().init)(jax.random.key(0), inputs), inputs, least_taken=10)


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 16, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.silu(self.norm(self.conv(x)))).mean((1, 2)))


@pytest.mark.slow
def test_a_module_of_nnx_is_computed_in_evaluation_mode():
    check(Nnx(), None, images(2, 8, 8, 3), least_taken=2)


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "precision"), [("1x1", "float32"), ("2x2", "bfloat16")])
def test_a_model_is_compiled_saved_and_loaded(mesh, precision, tmp_path):
    model = Nnx()
    spec = jax.ShapeDtypeStruct((8, 8, 3), "float32")
    executable = cambrian.compile(model, spec=spec, mesh=mesh, batch_size=8, precision=precision)
    x = images(11, 8, 8, 3)
    model.eval()
    expected = np.asarray(model(x))
    assert np.linalg.norm(executable(x) - expected) < 1e-2 * np.linalg.norm(expected)
    executable.save(tmp_path / "artifact")
    loaded = cambrian.load(tmp_path / "artifact")
    assert np.array_equal(loaded(x), executable(x))
    assert loaded.plan == executable.plan


def test_a_batch_must_divide_into_the_devices():
    def softmax(params, x):
        return jax.nn.softmax(x @ params)

    with pytest.raises(cambrian.UsageError, match="a multiple of the mesh's 4 devices for softmax, .*, got 6"):
        cambrian.compile(
            softmax, images(4, 4), jax.ShapeDtypeStruct((4,), "float32"), mesh="2x2", batch_size=6, name="softmax"
        )


def test_a_function_that_mixes_samples_is_computed_as_it_is():
    kernel = images(4, 4)

    def function(params, x):
        y = x @ params
        return y - jax.numpy.cumsum(y, axis=0)  # which keeps the axis of the samples

    spec = jax.ShapeDtypeStruct((4,), "float32")
    executable = cambrian.compile(function, kernel, spec, mesh="2x2", batch_size=8)
    x = images(8, 4)
    assert np.allclose(executable(x), function(kernel, x), atol=1e-5)
    assert "it may mix the samples of a batch" in " ".join(executable.notes)


def test_a_function_may_hold_its_weights():
    kernel, spec, x = images(64, 32), jax.ShapeDtypeStruct((64,), "float32"), images(3, 64)
    executable = cambrian.compile(lambda _, x: jax.jit(jax.nn.relu)(x @ kernel), {}, spec)
    np.testing.assert_allclose(executable(x), jax.nn.relu(x @ kernel), rtol=1e-4, atol=1e-4)


def test_what_is_no_model_or_lacks_parameters_is_refused():
    for model, params, message in [
        (3, None, "expected a function, or a model of Flax, Equinox, Haiku or Keras, got int"),
        (nnx.Linear, None, "expected a function, or a model of .*, got the class Linear"),
        (Nnx(), {}, "a model of flax.nnx holds its parameters"),
        (Mixer(), None, "expected params, the parameters of the model of flax.linen, got None"),
    ]:
        with pytest.raises(cambrian.UsageError, match=message):
            as_function(model, params)


@pytest.mark.parametrize("jit", [jax.jit, nnx.jit])
def test_a_model_under_jit_is_the_model(jit):
    class Net(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, x, scale=1.0):  # which a function of (params, inputs) may look like, too
            return scale * self.dropout(self.dense(x))

    model, x = Net(), images(2, 4)
    executable = cambrian.compile(jit(model), spec=jax.ShapeDtypeStruct((4,), "float32"), batch_size=2)
    np.testing.assert_allclose(executable(x), model.dense(jax.numpy.asarray(x)), rtol=1e-5, atol=1e-6)
    assert executable.name == "Net"


def test_a_function_under_equinox_s_jit_is_no_model_of_equinox():
    import equinox as eqx

    kernel, x = images(4, 4), images(2, 4)
    function, params = as_function(eqx.filter_jit(lambda params, x: x @ params), kernel)
    np.testing.assert_allclose(function(params, x), x @ kernel, rtol=1e-5, atol=1e-6)


def test_parameters_that_change_later_are_the_ones_that_were_given():
    import equinox as eqx

    class OfEquinox(eqx.Module):
        kernel: np.ndarray

        def __call__(self, x):
            return x @ self.kernel

    dense, held, kernel, x = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), {"kernel": images(4, 3)}, images(4, 3), images(2, 4)

    def train() -> None:
        dense.kernel[...] += 1.0
        held["kernel"] = kernel
        kernel[:] += 1.0

    cases = [(dense, None), (lambda p, x: x @ p, kernel), (lambda p, x: x @ p["kernel"], held)]
    cases += [(nn.Dense(3, use_bias=False), {"params": {"kernel": kernel}}), (OfEquinox(kernel), None)]
    functions = [as_function(model, params) for model, params in cases]
    before = [function(params, x) for function, params in functions]
    train()
    for (function, params), expected in zip(functions, before, strict=True):
        np.testing.assert_array_equal(function(params, x), expected)


def test_a_recurrent_module_of_flax_nnx_draws_its_first_carry():
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.recurrent = nnx.RNN(nnx.SimpleCell(4, 8, rngs=rngs))

        def __call__(self, x):
            return self.recurrent(x)

    model, x = Net(nnx.Rngs(0)), images(2, 5, 4)
    function, params = as_function(model, None)
    for _ in range(2):  # of one model, as several traces are made
        np.testing.assert_allclose(jax.jit(function)(params, x), model(x), rtol=1e-5, atol=1e-6)
