"""Launches that are timed: how many, and in which order."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from cambrian.models.costs import measure
from cambrian.sharding import MeshShape, make_mesh, time_launches


@pytest.mark.parametrize(("threads", "least"), [(1, 1), (1, 4), (3, 2)])
def test_each_thread_takes_the_time_of_so_many_launches(threads, least):
    calls = itertools.count()
    times = time_launches(lambda: jnp.float32(next(calls)), threads, least=least, seconds=0.0)
    assert next(calls) == len(times) == threads * least
    assert all(time > 0 for time in times)


def test_cases_that_are_compared_take_turns():
    order = []

    def launch(name: str):
        order.append(name)
        return jnp.float32(0)

    mesh = make_mesh(MeshShape(1, 1), jax.devices())
    milliseconds, _ = measure._in_turns([lambda: launch("one"), lambda: launch("other")], mesh, threads=1)
    assert [name for name, _ in itertools.groupby(order)] == ["one", "other"] * 4  # once to be compiled
    assert all(time > 0 for time in milliseconds)


@pytest.mark.parametrize(
    ("before", "after", "reference_ms"), [([9, 2], [2, 3], 2), ([2, 3], [9, 8], 2), ([8, 9], [7, 9], 7)]
)
def test_the_fastest_round_counts_and_the_reference_if_it_is_slow_before_and_after(
    monkeypatch, before, after, reference_ms
):
    rounds = iter([before, [3.0, 5.0, 4.0], [7.0], [8.0], after])
    monkeypatch.setattr(measure, "time_launches", lambda *arguments, **options: next(rounds))
    mesh = make_mesh(MeshShape(1, 1), jax.devices())
    assert measure._in_turns([lambda: jnp.float32(0)], mesh, threads=1) == ([4.0], reference_ms)
