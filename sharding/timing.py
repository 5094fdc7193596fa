"""How long launches take."""

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax


def time_launches(launch: Callable[[], jax.Array], threads: int, *, least: int, seconds: float) -> list[float]:
    """Milliseconds of launches: by so many threads at once, one after another in each.

    Args:
      least: launches of each thread.
      seconds: for which each goes on.
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
