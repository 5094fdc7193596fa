"""Timing of launches."""

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax


def time_launches(launch: Callable[[], jax.Array], threads: int, *, least: int, seconds: float) -> list[float]:
    """Times launches on several threads at once; each thread launches one after another.

    Args:
      launch: function that launches a computation and returns its result, which may still be pending.
      threads: number of threads.
      least: smallest number of launches per thread.
      seconds: time for which each thread goes on launching.

    Returns:
      Milliseconds of each launch, from its start to the complete result.
    """
    end = time.perf_counter() + seconds

    def take_times(_: int) -> list[float]:
        times = []
        while len(times) < least or time.perf_counter() < end:
            start = time.perf_counter()
            jax.block_until_ready(launch())
            times.append(1e3 * (time.perf_counter() - start))
        return times

    with ThreadPoolExecutor(threads) as pool:
        return list(itertools.chain.from_iterable(pool.map(take_times, range(threads))))
