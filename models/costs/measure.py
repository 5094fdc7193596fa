"""Measures how long cases take on the present devices."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from cambrian.models.costs.layer_case import LayerCase
from cambrian.models.costs.table import Transition
from cambrian.models.execution.execute_plan import isolated
from cambrian.models.execution.place_params import local_kernels
from cambrian.models.lowerings import LOWERINGS, Finish
from cambrian.models.lowerings.pooling import max_pool, mean_pool
from cambrian.sharding import (
    MODEL_AXIS,
    Kind,
    Layout,
    aligned,
    halo_exchange,
    sum_over_model_axis,
    time_launches,
    transition,
)

# Layers of one measurement, each with weights of its own, as in a network, so that not all of them lie in the cache:
# more where they are so small that the launch itself would count, few where many devices share cores and caches.
_LEAST_LAYERS, _MOST_LAYERS, _LAYERS_SHARED = 4, 16, 2
_FLOPS = 2**30
# In a network a layer's weights have left the caches since its last run. So the runs take turns with copies of them
# that fill this many bytes, a few times a last-level cache; beyond so many copies they are too small to matter.
_WEIGHTS_BYTES, _MOST_COPIES = 2**27, 16
# The machine may be slower for seconds on end. So cases that are compared take turns, in so many rounds.
_ROUNDS, _SECONDS = 3, 0.04
_CHUNKS = 4


def measure_cases(cases: Sequence[LayerCase], mesh: Mesh, launches_at_once: int = 1) -> list[float]:
    """Milliseconds in which all devices of `mesh` compute one layer of each case, each device on samples of its own.

    So many host threads let them do so at once. The medians over several runs of a few such layers, which depend on
    each other; the cases take turns.
    """
    launches = [_layers_of(case, mesh) for case in cases]
    times = _in_turns([launch for launch, _ in launches], launches_at_once)
    return [milliseconds / num_layers for milliseconds, (_, num_layers) in zip(times, launches, strict=True)]


def _in_turns(launches: Sequence[Callable[[], jax.Array]], threads: int) -> list[float]:
    """The median milliseconds of each launch, by so many threads at once."""
    for launch in launches:
        jax.block_until_ready(launch())  # compiles it
    times = [[] for _ in launches]
    for _, (launch, taken) in itertools.product(range(_ROUNDS), zip(launches, times, strict=True)):
        taken += time_launches(launch, threads, least=1, seconds=_SECONDS)
    return [statistics.median(taken) for taken in times]


def _layers_of(case: LayerCase, mesh: Mesh) -> tuple[Callable[[], jax.Array], int]:
    """A launch of a few layers of a case, and how many."""
    random = np.random.default_rng(0)

    def values(shape: Sequence[int], dtype: str = case.dtype, scale: float = 1.0) -> np.ndarray:
        return (random.standard_normal(shape, np.float32) * np.float32(scale)).astype(dtype)

    enough = math.ceil(_FLOPS / case.flops) if case.has_weights else 0
    num_layers = min(max(enough, _LEAST_LAYERS), _MOST_LAYERS) if mesh.size == 1 else _LAYERS_SHARED
    kernels = [_kernel(case, values) for _ in range(num_layers if case.has_weights else 1)]
    bias = values((case.out_channels,), "float32")
    x, residual = values(case.in_shape), values(case.out_shape) if case.residual else None
    layer = _layer(case)
    layer = isolated(layer) if mesh.devices.flat[0].platform == "cpu" else layer

    def layers(kernels, bias, x, residual):
        x, residual = x[0], None if residual is None else residual[0]
        y = None
        for kernel in kernels:
            y = layer(kernel, bias, x, residual)
            bias = bias + 0 * y[0, 0, 0, : case.out_channels].astype(bias.dtype)  # the next one waits for this one
        assert y is not None
        return y[None]

    spread, whole = P(mesh.axis_names), P()
    function = jax.jit(
        jax.shard_map(layers, mesh=mesh, in_specs=(whole, whole, spread, spread), out_specs=spread, check_vma=False)
    )
    held = sum(array.nbytes for kernel in kernels for array in kernel)
    num_copies = min(_MOST_COPIES, math.ceil(_WEIGHTS_BYTES / held)) if held else 1
    copies = itertools.cycle(
        [
            # The devices share each array, as they do in a network.
            jax.device_put([[aligned(array) for array in kernel] for kernel in kernels], NamedSharding(mesh, whole))
            for _ in range(num_copies)
        ]
    )
    operands = (
        jax.device_put(bias, NamedSharding(mesh, whole)),
        *(_on_each_device(array, mesh) for array in (x, residual)),
    )
    return lambda: function(next(copies), *operands), len(kernels)


def measure_transition(wanted: Transition, mesh: Mesh, launches_at_once: int = 1) -> float:
    """Milliseconds in which all groups of `mesh` do a transition once, on a tensor of about the values wanted."""
    model = mesh.shape[MODEL_AXIS]
    operation, held = _operation(wanted.operation), wanted.values
    if ">" in wanted.operation and not wanted.operation.startswith(Layout.WHOLE):
        held //= model
    # Every dimension can be cut; a halo is one row from above and one from below.
    shape = {"halo": (1, 2, 1), "loop": (_CHUNKS, 1, 1)}.get(wanted.operation, (model, model, 1))
    channels = max(1, round(held / math.prod(shape) / model)) * model
    x = np.zeros((mesh.size, *shape, channels), wanted.dtype)
    spread = P(mesh.axis_names)
    function = jax.jit(
        jax.shard_map(lambda x: operation(x[0])[None], mesh=mesh, in_specs=spread, out_specs=spread, check_vma=False)
    )
    placed = jax.device_put(x, NamedSharding(mesh, spread))
    return _in_turns([lambda: function(placed)], launches_at_once)[0]


def _operation(name: str) -> Callable[[jax.Array], jax.Array]:
    match name:
        case "loop":  # something is computed, or XLA would leave the loop out
            return lambda x: lax.map(lambda chunk: jnp.flip(chunk, axis=0), x.reshape(_CHUNKS, -1, x.shape[-1]))
        case "halo":
            return lambda x: halo_exchange(x, 1, 1)
        case "sum":
            return sum_over_model_axis
    source, target = (Layout(layout) for layout in name.split(">"))
    return lambda x: transition(x, source, target)


def _layer(case: LayerCase) -> Callable[..., jax.Array]:
    def compute(kernel, bias, x, residual):
        if case.kind == Kind.MAX_POOL:
            return max_pool(x, case.window)
        if case.kind == Kind.MEAN_POOL:
            return mean_pool(x, (case.rows, case.columns), summed=False)
        finish = Finish(bias, residual, True, case.out_dtype)
        return LOWERINGS[case.lowering].apply(x, kernel, case.window, finish)

    return compute


def _kernel(case: LayerCase, values: Callable[..., np.ndarray]) -> list[np.ndarray]:
    if not case.has_weights:
        return []
    shape = (case.kernel, case.kernel, case.in_channels, case.out_channels)
    kernel = values(shape, "float32", (case.kernel**2 * case.in_channels) ** -0.5)
    return local_kernels(kernel, case.lowering, case.dtype, case.call())


def _on_each_device(array: np.ndarray | None, mesh: Mesh) -> jax.Array | None:
    if array is None:
        return None
    sharding = NamedSharding(mesh, P(mesh.axis_names))
    return jax.device_put(np.broadcast_to(array, (mesh.size, *array.shape)), sharding)
