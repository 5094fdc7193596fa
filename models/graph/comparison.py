"""Compares launches of the same function on the same random inputs: their results and their times."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from cambrian.models.execution.build_program import TOLERANCE
from cambrian.models.graph.graph import Graph
from cambrian.sharding import random_array

LEAST_GAIN = 1.02  # of a rewritten function, for which it is taken

_ROUNDS, _SECONDS, _LEAST_SECONDS = 5, 4.0, 0.3  # more rounds of short launches, whose times vary by a tenth
_CLEARLY_SLOWER = 3.0  # than the fastest, in two launches, of which the first may find its memory for the first time

_Key = TypeVar("_Key")


def random_inputs(specs: Any) -> Any:
    """Draws an array for each leaf of a pytree of shapes and dtypes, each time the same."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda spec: random_array(spec.shape, jnp.dtype(spec.dtype), random), specs)


class Deviation(NamedTuple):
    """How far results are from the expected ones: the largest relative error, and the path of the array that has it."""

    error: float
    path: str = ""

    def __str__(self) -> str:
        what = f"a relative error of {self.error:.1e}"
        if np.isnan(self.error):
            what = "some that aren't finite for random inputs"
        return f"{what} in outputs/{self.path}" if self.path else what

    def reason_against(self, tolerance: float) -> str:
        """Why a function is computed as it is, whose results would deviate so."""
        if np.isnan(self.error):
            return f"its outputs can't be compared: got {self}"
        return f"the optimised function's outputs must be within {tolerance:g} of its own, got {self}"


def deviation(got: Any, expected: Any) -> Deviation:
    """The largest of the arrays' relative errors in the L2 norm; inf if shapes differ, NaN if a value is.

    Of integers, which jump where floats nearly tie, as classes and masks do, it is the squared share of those that
    differ, if that is less.
    """

    def error(got: jax.Array, expected: jax.Array) -> float:
        if got.shape != expected.shape:
            return np.inf
        exact = widened(expected)
        with np.errstate(invalid="ignore"):  # of infinities, whose difference is NaN
            difference = widened(got) - exact
        in_norm = float(np.linalg.norm(difference.ravel()) / max(np.linalg.norm(exact.ravel()), 1e-30))
        return min(in_norm, np.mean(difference != 0) ** 2) if expected.dtype.kind in "biu" and exact.size else in_norm

    pairs = zip(jax.tree.leaves(got), jax.tree.leaves_with_path(expected), strict=True)
    found = [Deviation(error(one, other), keystr(path, simple=True, separator="/")) for one, (path, other) in pairs]
    return max(found, key=lambda each: (np.isnan(each.error), each.error), default=Deviation(0.0))


def default_tolerance(graph: Graph, precision: str) -> float:
    """The largest relative error of a rewritten graph; that of bfloat16, too, for one that has such values itself."""
    dtypes = {value.dtype for node in graph.nodes for value in node.outputs}
    narrow = any(jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4 for dtype in dtypes)
    return TOLERANCE["bfloat16" if narrow else precision]


def widened(array: jax.Array) -> np.ndarray:
    """On the host, as complex128 or float64."""
    return np.asarray(array, np.complex128 if jnp.issubdtype(array.dtype, jnp.complexfloating) else np.float64)


def median_seconds(launches: Mapping[_Key, Callable[[], Any]]) -> dict[_Key, float]:
    """The median time of each launch, in turn; of those that are clearly slower, the better time of two launches."""
    times = {key: [_seconds(launch)] for key, launch in launches.items()}
    fastest = min(first for first, *_ in times.values())
    for key, (first, *_) in times.items():
        if first >= _CLEARLY_SLOWER * fastest:  # another process may have had its core
            times[key] = [min(first, _seconds(launches[key]))]
    close = [key for key, (first, *_) in times.items() if first < _CLEARLY_SLOWER * fastest]
    for key in close:
        times[key].clear()
    rounds, spent = 0, 0.0
    while spent < (_SECONDS if rounds < _ROUNDS else _LEAST_SECONDS):
        for key in close:
            times[key].append(_seconds(launches[key]))
            spent += times[key][-1]
        rounds += 1
    return {key: statistics.median(taken) for key, taken in times.items()}


def _seconds(launch: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(launch())
    return time.perf_counter() - start
