"""A function whose parameters are known, rewritten for each shape of its inputs, for use inside the user's own code."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cambrian.models.graph.choose_lowerings import MeasuredCosts, choose_lowerings
from cambrian.models.graph.graph import Constant, Graph
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.precision import in_bfloat16
from cambrian.models.graph.trace import trace

_SECONDS = 10.0  # of measuring lowerings, for each shape of the inputs


class OptimizedFunction:
    """Computes `function(params, *inputs)` from `inputs`, pytrees of arrays.

    At the first call with inputs of new shapes and dtypes the function is traced, rewritten, and its lowerings are
    measured; so call it once before anything is timed. It may be called under `jax.jit`, `jax.shard_map` (with
    `check_vma=False`), `jax.lax.scan` and `jax.lax.map`; there the parameters are constants. It can't be differentiated
    or mapped by `jax.vmap`.
    """

    def __init__(self, function: Callable[..., Any], params: Any, precision: str, device: jax.Device):
        self._function, self._params = function, params
        self._precision, self._device = precision, device
        self._graphs: dict[Any, tuple[Graph, dict[Constant, jax.Array], Any]] = {}

    def __call__(self, *inputs: Any) -> Any:
        leaves, treedef = jax.tree.flatten(inputs)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        abstract = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
        key = (abstract, treedef)
        if key not in self._graphs:
            with jax.ensure_compile_time_eval():  # the caller may be under a trace
                self._graphs[key] = self._optimized(jax.tree.unflatten(treedef, abstract))
        graph, constants, results = self._graphs[key]
        return jax.tree.unflatten(results, graph.evaluate(constants, leaves))

    def _optimized(self, inputs: Any) -> tuple[Graph, dict[Constant, jax.Array], Any]:
        graph, results = trace(self._function, self._params, *inputs)
        graph = optimized(graph)
        if self._precision == "bfloat16":
            graph = in_bfloat16(graph)
        graph = choose_lowerings(graph, self._device, MeasuredCosts.of_machine(self._device.platform), _SECONDS)
        return graph, {constant: jnp.asarray(constant.array) for constant in graph.constants()}, results
