"""Functions that mix the samples of a batch are never cut, and take whole batches alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import cambrian
from build_cases import BYTES, PARAMS, SAMPLES, built, network, set_cache_share
from cambrian.models.graph.sample_mixing import operation_over_samples
from cambrian.models.graph.trace import trace
from cambrian.sharding import MeshShape, UsageError, make_mesh
from graph_cases import draw


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
def test_a_function_that_mixes_samples_is_never_cut(monkeypatch, function):
    set_cache_share(monkeypatch, 3 * BYTES)
    _, sizes, _ = built(monkeypatch, function)
    assert {3} not in sizes
    programs, _, program = built(monkeypatch, function, "1x2")
    assert programs == []
    assert program.notes[0].startswith("mine mixes the samples of a batch (")
    assert "computed as JAX compiles it: the mesh can't cut the samples, as mine mixes them (" in program.notes[1]
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


def test_so_does_one_under_sharding_rules():
    spec = jax.ShapeDtypeStruct((4,), "float32")
    rules = [("kernel", P(None, "model"))]
    for function, takes in (lambda y: y - y.mean(axis=0), 8), (lambda y: y - y.mean(axis=1, keepdims=True), 1):
        params = {"kernel": draw(4, 4)}
        executable = cambrian.compile(
            lambda p, x, f=function: f(x @ p["kernel"]), params, spec, mesh="2x2", batch_size=8, rules=rules
        )
        x = draw(8, 4)
        np.testing.assert_allclose(executable(x), function(x @ params["kernel"]), rtol=1e-5, atol=1e-6)
        if takes == 1:
            executable(x[:7])
        else:
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
        lambda p, x: jnp.cumsum(x, axis=0),  # each reads those before it
        lambda p, x: (x.reshape(-1, 2, 4) - x.reshape(-1, 2, 4).mean(1, keepdims=True)).reshape(x.shape),  # neighbours
        lambda p, x: x.reshape(8, -1, 4).sum(1),  # bound to its batch, but computes others, too
    ],
)
@pytest.mark.parametrize("rules", [None, []])
@pytest.mark.parametrize("mesh", ["1x1", "2x4"])
def test_what_mixes_samples_by_its_results_takes_whole_batches_alone(function, rules, mesh):
    spec = jax.ShapeDtypeStruct((4,), "float32")
    executable = cambrian.compile(function, {}, spec, batch_size=8, mesh=mesh, rules=rules)
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


@pytest.mark.parametrize("rules", [None, [(".*", P())]])
@pytest.mark.parametrize("mesh", ["1x1", "1x2"])
def test_results_that_are_as_many_as_samples_by_chance_come_with_whole_batches(rules, mesh):
    """Of fewer samples they would be cut, of more repeated."""
    table, x = draw(8, 4), draw(8, 4)
    spec = jax.ShapeDtypeStruct((4,), "float32")
    executable = cambrian.compile(lambda p, x: (x @ p.T, p), table, spec, batch_size=8, mesh=mesh, rules=rules)
    np.testing.assert_array_equal(executable(x)[1], table)
    with pytest.raises(UsageError, match="takes 8 at a time, got 7"):
        executable(x[:7])


def test_a_function_that_is_bound_to_its_batch_is_not_cut():
    spec, kernel = jax.ShapeDtypeStruct((4,), "float32"), draw(4, 3)
    function, x = lambda p, x: x.reshape(8, -1) @ p, draw(8, 4)
    executable = cambrian.compile(function, kernel, spec, batch_size=8, mesh="1x2")
    (note,) = executable.notes
    assert note.endswith(
        "the mesh can't cut the samples, as test_a_function_that_is_bound_to_its_batch_is_not_cut."
        "<locals>.<lambda> is bound to 8 of them"
    )
    np.testing.assert_allclose(executable(x[:7]), x[:7] @ kernel, rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="in bfloat16 must be able to cut the samples, but .* is bound to 8 of them"):
        cambrian.compile(function, kernel, spec, batch_size=8, mesh="1x2", precision="bfloat16")


def test_a_function_with_a_shard_map_of_its_own_is_not_cut():
    mesh, cut = make_mesh(MeshShape(1, 2), jax.devices()[:2]), P("data")
    spec, kernel, x = jax.ShapeDtypeStruct((4,), "float32"), draw(4, 3), draw(8, 4)

    def function(p, x):
        return jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(cut, P()), out_specs=cut)(x, p)

    executable = cambrian.compile(function, kernel, spec, batch_size=8, mesh=mesh)
    np.testing.assert_allclose(executable(x[:7]), x[:7] @ kernel, rtol=1e-5, atol=1e-6)
    assert executable.notes[-1].endswith("function calls jax.shard_map")
    with pytest.raises(UsageError, match="in bfloat16 must be able to cut the samples, but .* calls jax.shard_map"):
        cambrian.compile(function, kernel, spec, batch_size=8, mesh=mesh, precision="bfloat16")


@pytest.mark.parametrize("rules", [None, [(".*", P())]])
def test_what_is_left_to_jax_has_the_tolerance_of_its_own_dtypes(rules):
    spec, kernel = jax.ShapeDtypeStruct((4,), "bfloat16"), draw(4, 4).astype(jnp.bfloat16)
    for asked, expected in (None, 2e-2), (0.5, 0.5):
        executable = cambrian.compile(
            lambda p, x: x @ p - x.mean(axis=0), kernel, spec, batch_size=8, mesh="1x2", rules=rules, tolerance=asked
        )
        assert executable.program is not None
        assert executable.program.tolerance == expected


def test_how_a_function_says_that_values_lie_changes_no_numbers(tmp_path):
    mesh = make_mesh(MeshShape(1, 2), jax.devices()[:2])
    kernel, x = draw(4, 4), draw(8, 4)

    def function(p, x):
        return jax.lax.with_sharding_constraint(x @ p, jax.NamedSharding(mesh, P("data")))

    executable = cambrian.compile(function, kernel, jax.ShapeDtypeStruct((4,), "float32"), batch_size=8, mesh=mesh)
    executable.save(tmp_path / "artifact")
    for each in executable, cambrian.load(tmp_path / "artifact"):
        np.testing.assert_allclose(each(x), x @ kernel, rtol=1e-5, atol=1e-6)
