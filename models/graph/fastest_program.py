"""Which of several programs of one function runs fastest, among those whose results are right."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cambrian.models.graph.over_samples import marked_as_mixing
from cambrian.sharding import MIXES_SAMPLES, Program, TensorSpec, UsageError, aligned, compile_apply, shardings

_ROUNDS, _SECONDS = 5, 4.0
_LEAST_GAIN = 1.02
_CLEARLY_SLOWER = 3.0  # than the fastest, in the first launch, which may find its memory for the first time

Launch = functools.partial[Any]  # of a compiled program on its parameters and inputs


def fastest_program(
    programs: Sequence[Program],
    stock: Program,
    *,
    stock_allowed: bool,
    reference: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Program:
    """Launches programs in turn on random inputs and returns the fastest whose results are those of `stock`.

    One that turns out to mix the samples of a batch is marked so.

    Args:
      programs: ways to compute the same function, on the same mesh.
      stock: the function as JAX compiles it.
      stock_allowed: whether `stock` itself may be returned, with a note why: if no results are right, or none of the
        others is faster.
      reference: function from inputs to the right results; None for `stock`.

    Raises:
      UsageError: if no results are right and `stock` isn't allowed.
    """
    random = np.random.default_rng(0)
    inputs = jax.tree.map(lambda spec: _random_input(spec, random), stock.input_spec)
    launch_stock = _launch(stock, inputs)
    expected = launch_stock() if reference is None else reference(inputs)
    launches, errors = {}, []
    for program in programs:
        launch = _launch(program, inputs)
        error = _relative_error(launch(), expected)
        if error <= program.tolerance:
            launches[program] = launch
        else:
            errors.append(error)
    if not launches:
        return _marked(_as_it_is(stock, errors, stock_allowed), launch_stock, inputs)
    seconds = _seconds_of(launches | {stock: launch_stock})
    best = min(launches, key=seconds.__getitem__)
    gain = seconds[stock] / seconds[best]
    if stock_allowed and gain < _LEAST_GAIN:
        note = f"computed as JAX compiles it: the optimised function was measured {gain:.2f} times as fast"
        return _marked(dataclasses.replace(stock, notes=(*stock.notes, note)), launch_stock, inputs)
    slower = () if gain >= 1 else (f"measured {gain:.2f} times as fast as the function as JAX compiles it",)
    metadata, notes = {**best.metadata, "gain": round(gain, 3)}, (*best.notes, *slower)
    return _marked(dataclasses.replace(best, metadata=metadata, notes=notes), launches[best], inputs)


def _as_it_is(stock: Program, errors: Sequence[float], allowed: bool) -> Program:
    least, mixed = min(errors), "; it may mix the samples of a batch" if stock.mesh.size > 1 else ""
    if not allowed:
        raise UsageError(
            f"in {stock.metadata['precision']} the outputs must be within {stock.tolerance:g} of the function's own, "
            f"got a relative error of {least:.1e}{mixed}; compute in float32, or raise the tolerance"
        )
    differ = f"the optimised function's outputs differ by {least:.1e}{mixed}"
    if np.isnan(least):
        differ = "some outputs for random inputs aren't finite, so that they can't be compared"
    return dataclasses.replace(stock, notes=(*stock.notes, f"computed as JAX compiles it: {differ}"))


def _seconds_of(launches: dict[Program, Launch]) -> dict[Program, float]:
    """The median time of a launch of each program, in turn; of those that are clearly slower, of one launch."""
    times = {program: [_seconds(launch)] for program, launch in launches.items()}
    fastest = min(first for first, *_ in times.values())
    close = [program for program, (first, *_) in times.items() if first < _CLEARLY_SLOWER * fastest]
    for program in close:
        times[program].clear()
    end = time.perf_counter() + _SECONDS
    for number in range(_ROUNDS):
        if number and time.perf_counter() > end:
            break
        for program in close:
            times[program].append(_seconds(launches[program]))
    return {program: statistics.median(taken) for program, taken in times.items()}


def _seconds(launch: Launch) -> float:
    start = time.perf_counter()
    jax.block_until_ready(launch())
    return time.perf_counter() - start


def _relative_error(got: Any, expected: Any) -> float:
    """The largest of the arrays' errors; inf if shapes differ."""

    def error(got: jax.Array, expected: jax.Array) -> float:
        if got.shape != expected.shape:
            return np.inf
        exact = np.asarray(expected, np.float64)
        return float(np.linalg.norm(np.asarray(got, np.float64) - exact) / max(np.linalg.norm(exact), 1e-30))

    return float(np.max([error(*pair) for pair in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)]))


def _marked(program: Program, launch: Launch, inputs: Any) -> Program:
    """The program, marked as mixing samples if the results of the first half of them depend on the others."""
    half = jax.tree.leaves(inputs)[0].shape[0] // 2
    if MIXES_SAMPLES in program.metadata or half == 0:
        return program

    def without_others(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array[:half], np.zeros_like(array[half:])])

    others = _placed(jax.tree.map(without_others, inputs), program)
    params, _ = launch.args
    pairs = zip(jax.tree.leaves(launch()), jax.tree.leaves(launch.func(params, others)), strict=True)
    halves = ([np.asarray(array[:half], np.float64) for array in pair] for pair in pairs)
    if all(np.allclose(one, other, 1e-4, 1e-6, equal_nan=True) for one, other in halves):
        return program
    return marked_as_mixing(program)


def _launch(program: Program, inputs: Any) -> Launch:
    params = jax.device_put(list(map(aligned, program.params)), shardings(list(program.param_specs), program.mesh))
    return functools.partial(compile_apply(program), params, _placed(inputs, program))


def _placed(inputs: Any, program: Program) -> Any:
    return jax.device_put(inputs, shardings(program.input_spec, program.mesh))


def _random_input(spec: TensorSpec, random: np.random.Generator) -> np.ndarray:
    if jnp.issubdtype(spec.dtype, jnp.floating):
        return random.standard_normal(spec.shape, np.float32).astype(spec.dtype)
    high = 256 if spec.dtype == "uint8" else 2  # pixels; other integers may be indices into small tables
    return random.integers(0, high, spec.shape).astype(spec.dtype)
