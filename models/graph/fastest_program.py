"""Which of several programs of one function runs fastest, among those whose results are right."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from cambrian.models.graph.comparison import (
    LEAST_GAIN,
    Deviation,
    deviation,
    median_seconds,
    random_inputs,
    widened,
)
from cambrian.models.graph.sample_mixing import marked_as_mixing
from cambrian.sharding import MIXES_SAMPLES, Program, UsageError, aligned, compile_apply, shardings

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
    inputs = random_inputs(stock.input_spec)
    launch_stock = _launch(stock, inputs)
    expected = launch_stock() if reference is None else reference(inputs)
    launches, wrong = {}, []
    for program in programs:
        launch = _launch(program, inputs)
        found = deviation(launch(), expected)
        if found.error <= program.tolerance:
            launches[program] = launch
        else:
            wrong.append(found)
    if not launches:
        return _marked(_as_it_is(stock, wrong, stock_allowed), launch_stock, inputs)
    seconds = median_seconds(launches | {stock: launch_stock})
    best = min(launches, key=seconds.__getitem__)
    gain = seconds[stock] / seconds[best]
    if stock_allowed and gain < LEAST_GAIN:
        note = f"computed as JAX compiles it: the optimised function was measured {gain:.2f} times as fast"
        return _marked(_stock_with(stock, note), launch_stock, inputs)
    slower = () if gain >= 1 else (f"measured {gain:.2f} times as fast as the function as JAX compiles it",)
    metadata, notes = {**best.metadata, "gain": round(gain, 3)}, (*best.notes, *slower)
    return _marked(dataclasses.replace(best, metadata=metadata, notes=notes), launches[best], inputs)


def _as_it_is(stock: Program, wrong: Sequence[Deviation], allowed: bool) -> Program:
    least = min(wrong)
    mixed = "; it may mix the samples of a batch" if stock.mesh.size > 1 and not np.isnan(least.error) else ""
    if not allowed:
        raise UsageError(
            f"in {stock.metadata['precision']} the outputs must be within {stock.tolerance:g} of the function's own, "
            f"got {least}{mixed}; compute in float32, or raise the tolerance"
        )
    return _stock_with(stock, f"computed as JAX compiles it: {least.reason_against(stock.tolerance)}{mixed}")


def _stock_with(stock: Program, note: str) -> Program:
    return dataclasses.replace(stock, notes=(*stock.notes, note), metadata={**stock.metadata, "gain": 1.0})


def _marked(program: Program, launch: Launch, inputs: Any) -> Program:
    """The program, marked as mixing samples if the results of a half of them depend on the others.

    The first half meets what lies far apart, every other sample neighbours and what comes before.
    """
    samples = np.arange(jax.tree.leaves(inputs)[0].shape[0])
    if MIXES_SAMPLES in program.metadata or len(samples) == 1:
        return program
    params, _ = launch.args
    results = jax.tree.leaves(launch())
    for half in (2 * samples < len(samples), samples % 2 == 0):

        def without_others(array: np.ndarray, half: np.ndarray = half) -> np.ndarray:
            return np.where(half.reshape(-1, *[1] * (array.ndim - 1)), array, np.zeros_like(array))

        others = _placed(jax.tree.map(without_others, inputs), program)
        pairs = zip(results, jax.tree.leaves(launch.func(params, others)), strict=True)
        halves = ([widened(array)[half] for array in pair] for pair in pairs)
        if not all(np.allclose(one, other, 1e-4, 1e-6, equal_nan=True) for one, other in halves):
            return marked_as_mixing(program)
    return program


def marked_by_results(program: Program) -> Program:
    """A program, marked as mixing the samples of a batch if its results for random inputs show that it does."""
    inputs = random_inputs(program.input_spec)
    return _marked(program, _launch(program, inputs), inputs)


def _launch(program: Program, inputs: Any) -> Launch:
    params = jax.device_put(list(map(aligned, program.params)), shardings(list(program.param_specs), program.mesh))
    return functools.partial(compile_apply(program), params, _placed(inputs, program))


def _placed(inputs: Any, program: Program) -> Any:
    return jax.device_put(inputs, shardings(program.input_spec, program.mesh))
