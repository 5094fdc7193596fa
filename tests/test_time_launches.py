"""Launches that are timed: how many, and in which order."""

import itertools

import jax.numpy as jnp
import pytest

from cambrian.models.costs import measure
from cambrian.sharding import time_launches


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

    milliseconds = measure._in_turns([lambda: launch("one"), lambda: launch("other")], threads=1)
    assert [name for name, _ in itertools.groupby(order)] == ["one", "other"] * 4  # once to be compiled
    assert all(time > 0 for time in milliseconds)
