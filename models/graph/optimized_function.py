"""A function whose parameters are known, rewritten for each shape of its inputs, for use inside the user's own code."""

import functools
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cambrian.models.graph.choose_lowerings import MeasuredCosts, choose_lowerings
from cambrian.models.graph.comparison import (
    LEAST_GAIN,
    default_tolerance,
    deviation,
    median_seconds,
    random_inputs,
)
from cambrian.models.graph.graph import Graph
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.precision import in_bfloat16
from cambrian.models.graph.trace import of_arrays, trace
from cambrian.sharding import UsageError, refusing_derivatives

_SECONDS = 10.0  # of measuring lowerings, for each shape of the inputs
# Threads may call for the first time at once, and what is measured needs the machine for itself.
_one_at_a_time = threading.RLock()


class OptimizedFunction:
    """Computes `function(params, *inputs)` from `inputs`, pytrees of arrays.

    At the first call with inputs of new shapes and dtypes the function is traced and rewritten, its lowerings are
    measured, and it is compared with the function as it is, on random inputs; so call it once before anything is timed.
    If in float32 the results differ or it isn't faster, the function is computed as it is, and `notes` say so. It may
    be called under `jax.jit`, `jax.shard_map` (with `check_vma=False`), `jax.lax.scan` and `jax.lax.map`; there the
    parameters are constants. What is rewritten can't be differentiated; `jax.vmap` maps calls of oneDNN in a loop.

    Args:
      shown: entered while the function is rewritten and measured, to show that it is.

    Attributes:
      notes: why the function is computed as it is, for shapes of inputs where it is; a warning, too, if its results
        would have differed, or if it was to be computed in bfloat16.

    Raises:
      UsageError: at a call, if the results in bfloat16 differ by more than 2e-2.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        params: Any,
        precision: str,
        device: jax.Device,
        shown: Callable[[], AbstractContextManager[None]],
    ):
        self.notes: list[str] = []
        self._function, self._params = function, params
        self._precision, self._device, self._shown = precision, device, shown
        self._chosen: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *inputs: Any) -> Any:
        leaves, treedef = jax.tree.flatten(inputs)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        types = map(jax.typeof, leaves)
        abstract = tuple(jax.ShapeDtypeStruct(each.shape, each.dtype, weak_type=each.weak_type) for each in types)
        key = (abstract, treedef)
        if key not in self._chosen:
            with _one_at_a_time:
                if key not in self._chosen:
                    with self._shown(), jax.core.eval_context():  # the caller may be under a trace
                        self._chosen[key] = self._choose(jax.tree.unflatten(treedef, abstract))
        return self._chosen[key](*jax.tree.unflatten(treedef, leaves))

    def _choose(self, inputs: Any) -> Callable[..., Any]:
        """The rewritten function, or the function as it is."""
        call, arrays = of_arrays(self._function, self._params)
        stock = functools.partial(call, _without_context(lambda: list(map(jnp.asarray, arrays.values()))))
        if not all(leaf.size for leaf in jax.tree.leaves(inputs)):  # of no samples nothing can be measured
            return stock
        graph, results = trace(self._function, self._params, *inputs)
        if not _is_comparable(graph):
            reason = (
                "it takes random keys or shapes without sizes, names axes, or has side effects: it can't be compared"
            )
            if self._precision == "bfloat16":
                warnings.warn(f"computed as JAX compiles it, in its own precision: {reason}", stacklevel=3)
            return self._as_it_is(stock, inputs, reason)
        rewritten = _without_context(lambda: self._rewritten(graph, results))
        # In the body of a shard_map the mesh in context is for tracers alone.
        in_body = jax.sharding.get_abstract_mesh().manual_axes
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())) if in_body else nullcontext():
            reason = self._reason_against(rewritten, stock, inputs, default_tolerance(graph, self._precision))
        if reason is not None:
            return self._as_it_is(stock, inputs, reason)
        return functools.partial(refusing_derivatives(rewritten.func), *rewritten.args)

    def _rewritten(self, graph: Graph, results: Any) -> functools.partial[Any]:
        """The function of inputs that a rewritten graph computes, with its constants as the first argument."""
        graph = optimized(graph)
        if self._precision == "bfloat16":
            graph = in_bfloat16(graph)
        graph = choose_lowerings(graph, self._device, MeasuredCosts.of_machine(self._device.platform), _SECONDS)
        constants = graph.constants()

        def compute(arrays: Any, *inputs: Any) -> Any:
            values = dict(zip(constants, arrays, strict=True))
            return jax.tree.unflatten(results, graph.evaluate(values, jax.tree.leaves(inputs)))

        return functools.partial(compute, [jnp.asarray(constant.array) for constant in constants])

    def _reason_against(
        self, rewritten: functools.partial[Any], stock: functools.partial[Any], inputs: Any, tolerance: float
    ) -> str | None:
        """Why the function is to be computed as it is; None if the rewritten one is right and, in float32, faster."""
        drawn = jax.tree.map(_as_typed, random_inputs(inputs), inputs)
        launches = {
            name: functools.partial(jax.jit(function.func), *function.args, *drawn)
            for name, function in (("stock", stock), ("rewritten", rewritten))
        }
        found = deviation(launches["rewritten"](), launches["stock"]())
        if not found.error <= tolerance:
            if self._precision == "bfloat16":
                raise UsageError(
                    f"in bfloat16 the outputs must be within {tolerance:g} of the function's own, got {found}; "
                    "compute in float32"
                )
            reason = found.reason_against(tolerance)
            warnings.warn(f"computed as JAX compiles it: {reason}", stacklevel=4)
            return reason
        if self._precision == "bfloat16":
            return None
        seconds = median_seconds(launches)
        gain = seconds["stock"] / seconds["rewritten"]
        return f"the optimised function was measured {gain:.2f} times as fast" if gain < LEAST_GAIN else None

    def _as_it_is(self, stock: Callable[..., Any], inputs: Any, reason: str) -> Callable[..., Any]:
        shapes = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(inputs))
        self.notes.append(f"{shapes}: computed as JAX compiles it: {reason}")
        return stock


def _without_context(compute: Callable[[], Any]) -> Any:
    """Computes without the mesh of `jax.set_mesh` or of a shard_map: in a thread of its own, where there is one.

    That ends later if the user interrupts it.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return compute()
    is_wide = jax.config.jax_enable_x64

    def run() -> Any:
        with jax.enable_x64(is_wide):
            return compute()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def _is_comparable(graph: Graph) -> bool:
    """Whether a graph computes on numbers, of shapes that are known, without side effects."""
    are_numbers = all(jnp.issubdtype(value.dtype, np.number) or value.dtype == bool for value in graph.inputs)
    have_sizes = all(isinstance(size, int) for value in graph.inputs for size in value.shape)  # jax.export has symbols
    return are_numbers and have_sizes and not any(node.has_effects for node in graph.nodes)


def _as_typed(array: np.ndarray, spec: jax.ShapeDtypeStruct) -> jax.Array:
    """The array on no device in particular, weakly typed where `spec` is: then all its values are the same."""
    return jnp.full(spec.shape, array.flat[0].item()) if spec.weak_type and array.size else jnp.asarray(array)
