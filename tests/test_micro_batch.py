"""How many samples at a time: what the caches hold, and the same results as all at once."""

import jax
import numpy as np
import pytest

from build_cases import BYTES, PARAMS, SAMPLES, built, network, set_cache_share
from cambrian.models.graph.micro_batch import micro_batch
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.trace import trace
from graph_cases import conv, draw


def graph_of(function, samples=SAMPLES):
    graph, _ = trace(function, PARAMS, jax.ShapeDtypeStruct((samples, 8, 8, 4), "float32"))
    return optimized(graph)


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
def test_the_largest_divisor_that_fits_a_core_s_share_of_the_cache(monkeypatch, share, size):
    set_cache_share(monkeypatch, share)
    assert micro_batch(graph_of(network)) == size


def test_weights_larger_than_all_activations_are_read_once(monkeypatch):
    set_cache_share(monkeypatch, BYTES)
    matrix = np.zeros((4, 4000), np.float32)
    assert micro_batch(graph_of(lambda p, x: network(p, x) @ matrix)) == 12


def test_what_xla_computes_itself_stays_outside_a_loop(monkeypatch):
    set_cache_share(monkeypatch, BYTES)
    assert micro_batch(graph_of(lambda p, x: conv(x, p["first"] * x.mean()))) == 12


@pytest.mark.parametrize("mesh", ["1x1", "2x2"])
def test_a_launch_in_micro_batches_gives_the_function_s_results(monkeypatch, mesh):
    set_cache_share(monkeypatch, 3 * BYTES)
    programs, sizes, _ = built(monkeypatch, network, mesh)
    in_parts = programs[sizes.index({3})]
    images = draw(SAMPLES * in_parts.mesh.size, 8, 8, 4)
    got = jax.jit(in_parts.apply)(in_parts.params, images)
    np.testing.assert_allclose(got, in_parts.reference(images), rtol=1e-4, atol=1e-5)


def test_a_function_that_is_bound_to_its_batch_runs_all_at_once(monkeypatch):
    set_cache_share(monkeypatch, 3 * BYTES)

    def function(params, images):
        assert len(images) == SAMPLES
        return network(params, images)

    _, sizes, _ = built(monkeypatch, function)
    assert {3} not in sizes
