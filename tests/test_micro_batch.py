"""How many samples at a time: what the caches hold, and the same results as all at once."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cambrian
from cambrian.models.graph.micro_batch import micro_batch
from cambrian.models.graph.over_samples import operation_over_samples
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.trace import trace
from cambrian.sharding import MeshShape, UsageError, make_mesh
from graph_cases import conv, draw

SAMPLES, BYTES = 12, 4 * 8 * 8 * (4 + 8)  # of the largest layer's input and output, for a sample
PARAMS = {"first": draw(3, 3, 4, 8), "second": draw(3, 3, 8, 4)}


def network(params, images):
    return conv(jax.nn.relu(conv(images, params["first"])), params["second"]).mean(axis=(1, 2))


def graph_of(function, samples=SAMPLES):
    graph, _ = trace(function, PARAMS, jax.ShapeDtypeStruct((samples, 8, 8, 4), "float32"))
    return optimized(graph)


@pytest.fixture
def cache(monkeypatch):
    """A function that sets a core's share of the last-level cache."""
    module = importlib.import_module("cambrian.models.graph.micro_batch")
    return lambda share: monkeypatch.setattr(module, "cache_share_bytes", lambda: share)


@pytest.mark.parametrize(
    ("share", "size"),
    [
        (None, 12),
        (12 * BYTES, 12),
        (12 * BYTES - 1, 6),
        (6 * BYTES - 1, 4),
        (4 * BYTES - 1, 3),
        (BYTES, 1),
        (BYTES - 1, 1),
    ],
)
def test_the_largest_divisor_that_fits_a_core_s_share_of_the_cache(cache, share, size):
    cache(share)
    assert micro_batch(graph_of(network)) == size


def test_weights_larger_than_all_activations_are_read_once(cache):
    cache(BYTES)
    matrix = np.zeros((4, 4000), np.float32)
    assert micro_batch(graph_of(lambda p, x: network(p, x) @ matrix)) == 12


def test_what_xla_computes_itself_stays_outside_a_loop(cache):
    cache(BYTES)
    assert micro_batch(graph_of(lambda p, x: conv(x, p["first"] * x.mean()))) == 12


def built(monkeypatch, function, mesh="1x1"):
    """The programs among which a build chooses, and the chosen one."""
    module = importlib.import_module("cambrian.models.graph.build_program")
    seen = []

    def choose(programs, stock, **settings):
        seen.extend(programs)
        return fastest(programs, stock, **settings)

    fastest = module.fastest_program
    monkeypatch.setattr(module, "fastest_program", choose)
    shape = MeshShape.parse(mesh)
    inputs = jax.ShapeDtypeStruct((SAMPLES * shape.num_devices, 8, 8, 4), "float32")
    program = module.build_program(function, PARAMS, inputs, make_mesh(shape, jax.devices()), name="mine")
    sizes = [{layer.micro_batch for _, layer in each.plan.layers} for each in seen]
    return seen, sizes, program


@pytest.mark.parametrize("mesh", ["1x1", "2x2"])
def test_a_launch_in_micro_batches_gives_the_function_s_results(cache, monkeypatch, mesh):
    cache(3 * BYTES)
    programs, sizes, _ = built(monkeypatch, network, mesh)
    in_parts = programs[sizes.index({3})]
    images = draw(SAMPLES * in_parts.mesh.size, 8, 8, 4)
    got = jax.jit(in_parts.apply)(in_parts.params, images)
    np.testing.assert_allclose(got, in_parts.reference(images), rtol=1e-4, atol=1e-5)


def test_a_function_that_is_bound_to_its_batch_runs_all_at_once(cache, monkeypatch):
    cache(3 * BYTES)

    def function(params, images):
        assert len(images) == SAMPLES
        return network(params, images)

    _, sizes, _ = built(monkeypatch, function)
    assert {3} not in sizes


def pairs(x):
    """The distances of all samples, with large ones to themselves."""
    return jnp.square(x[:, None] - x[None]).sum((2, 3, 4)) + 1e9 * jnp.eye(len(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [
        lambda p, x: network(p, x) - network(p, x).mean(axis=0),
        lambda p, x: jax.lax.cond(x.mean() > 2, lambda y: y, lambda y: -y, network(p, x)),
        lambda p, x: jax.lax.while_loop(lambda y: (y < 0.5).any(), lambda y: y + 0.25, network(p, x)),
        lambda p, x: jnp.where(x.max() > 50, 2.0, 3.0) * network(p, x),
        lambda p, x: network(p, x) * network(p, x).argmax(axis=0).astype("float32"),
        lambda p, x: network(p, x) @ (network(p, x).T @ network(p, x)),
        lambda p, x: jnp.where(jax.lax.top_k(x.max((1, 2, 3)), 1)[0][0] > 50, 2.0, 3.0) * network(p, x),
        lambda p, x: jax.lax.cond(x[0, 0, 0, 0] > 50, lambda y: y, lambda y: -y, network(p, x)),
        lambda p, x: jnp.where(pairs(x).min(1)[:, None] < 1e-6, 0.0, network(p, x)),
        lambda p, x: jnp.stack([network(p, row[None])[0] for row in x]) * jnp.where(x.max() > 50, 2.0, 3.0),
    ],
)
def test_a_function_that_mixes_samples_is_never_cut(cache, monkeypatch, function):
    cache(3 * BYTES)
    _, sizes, _ = built(monkeypatch, function)
    assert {3} not in sizes
    programs, _, program = built(monkeypatch, function, "1x2")
    assert programs == []
    assert program.notes[0].startswith("mine mixes the samples of a batch (")
    assert program.notes[1] == "computed as JAX compiles it"
    for images in draw(2 * SAMPLES, 8, 8, 4), np.repeat([[[[100.0]]], [[[0.0]]]], SAMPLES, 0) + np.zeros((8, 8, 4)):
        images = images.astype(np.float32)
        got, expected = jax.jit(program.apply)(program.params, images), function(PARAMS, images)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_one_that_mixes_samples_is_refused_in_bfloat16_on_several_devices():
    with pytest.raises(UsageError, match=r"mesh 1x2 in bfloat16 must be able to cut the samples, but .*reduce_sum"):
        cambrian.compile(
            lambda p, x: x - x.mean(axis=0),
            {},
            jax.ShapeDtypeStruct((4,), "float32"),
            mesh="1x2",
            batch_size=4,
            precision="bfloat16",
        )


def test_what_mixes_samples_takes_whole_batches_alone():
    spec = jax.ShapeDtypeStruct((4,), "float32")
    executable = cambrian.compile(lambda p, x: x - x.mean(axis=0), {}, spec, batch_size=8)
    x = draw(8, 4)
    np.testing.assert_allclose(executable(x), x - x.mean(axis=0), rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="mixes the samples of a batch takes 8 at a time, got 7"):
        executable(x[:7])


@pytest.mark.parametrize(
    "function",
    [
        lambda p, x: jax.lax.map(lambda row: network(p, row[None])[0], x),
        lambda p, x: jax.vmap(lambda row: network(p, row[None])[0])(x),
        lambda p, x: network(p, x) / jnp.linalg.norm(network(p, x), axis=1, keepdims=True),
        lambda p, x: jax.lax.fori_loop(0, 3, lambda _, y: y + network(p, x), network(p, x)),
    ],
)
def test_samples_that_are_computed_alone_are_known(function):
    shapes = [jax.ShapeDtypeStruct((samples, 8, 8, 4), "float32") for samples in (2, 4)]
    assert operation_over_samples(*(trace(function, PARAMS, shape)[0] for shape in shapes)) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda p, x: x - x.reshape(4, -1, 4).mean(0).repeat(4, 0)[: len(x)],  # of groups, as in some generators
        lambda p, x: x[::-1],
        lambda p, x: jnp.sort(x, axis=0),
        lambda p, x: x.reshape(8, -1) - x.reshape(8, -1).mean(0),  # bound to its batch
    ],
)
def test_what_mixes_samples_by_its_results_takes_whole_batches_alone(function):
    executable = cambrian.compile(function, {}, jax.ShapeDtypeStruct((4,), "float32"), batch_size=8)
    x = draw(8, 4)
    np.testing.assert_allclose(executable(x), function({}, x), rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="takes 8 at a time, got 7"):
        executable(x[:7])


def test_masks_that_are_evaluated_for_few_samples_alone_mix_nothing():
    def function(p, x):  # constants of 4 MiB for 64 samples, which are evaluated, and of 8 for twice as many
        mask = jnp.tril(jnp.ones((len(x), 128, 128), bool))
        return jnp.where(mask[:, -1, :4], x @ p, 0.0)

    spec = jax.ShapeDtypeStruct((4,), "float32")
    executable = cambrian.compile(function, draw(4, 4), spec, batch_size=64)
    assert executable(draw(3, 4)).shape == (3, 4)


def test_the_probe_of_what_mixes_samples_is_compared_as_a_whole(tmp_path):
    spec = jax.ShapeDtypeStruct((4,), "float32")
    cambrian.compile(lambda p, x: x - x.mean(axis=0), {}, spec, batch_size=128).save(tmp_path / "mixing")
    executable = cambrian.load(tmp_path / "mixing")
    x = draw(128, 4)
    np.testing.assert_allclose(executable(x), x - x.mean(axis=0), rtol=1e-4, atol=1e-5)
