"""Measures the times of cases and transitions on the available devices."""

import functools
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
from cambrian.models.lowerings import LOWERINGS, Call, Finish
from cambrian.models.lowerings.lowering import isolated
from cambrian.models.lowerings.pooling import max_pool, mean_pool
from cambrian.sharding import (
    MODEL_AXIS,
    Kind,
    Layout,
    aligned,
    compiler_options_of,
    halo_exchange,
    sum_over_model_axis,
    time_launches,
    transition,
)

# Number of layers in a measurement, each with its own weights as in a network, so that the caches don't hold them all:
# more for layers so small that the launch itself would count, fewer if many devices share cores and caches.
_LEAST_LAYERS, _MOST_LAYERS, _LAYERS_SHARED = 4, 16, 2
_FLOPS = 2**30
# In a network, the weights of a layer have left the caches since its last run. So launches cycle through copies of the
# weights that fill this many bytes, several times a last-level cache. Weights that need more copies are too small to
# matter.
_WEIGHTS_BYTES, _MOST_COPIES = 2**27, 16
# Other processes slow the machine for moments. So cases that are compared take turns, and the fastest round counts.
_ROUNDS, _SECONDS = 3, 0.04
# For a brief measurement: fewer rounds of fewer layers, and a single one if it is large enough.
_BRIEF_ROUNDS, _BRIEF_SECONDS, _BRIEF_MOST_LAYERS = 2, 0.015, 4
_CHUNKS = 4
_REFERENCE_SIZE, _REFERENCE_SECONDS = 1024, 0.015
_MOST_DRAWN = 2**20  # random values, then the same again: drawing takes longer than computing with them


def measure_cases(
    cases: Sequence[LayerCase], mesh: Mesh, launches_at_once: int = 1, *, brief: bool = False
) -> tuple[list[float], float]:
    """Measures the milliseconds in which all devices of `mesh` compute one layer of each case.

    Each launch computes a few layers that depend on each other, on separate samples for each device. The cases take
    turns; the times are medians of the fastest of several rounds.

    Args:
      cases: cases to measure.
      mesh: devices to measure on.
      launches_at_once: number of host threads that launch concurrently.
      brief: whether to be done soon, with more noise.

    Returns:
      The times, and the milliseconds of a small matrix product before or after, whichever are fewer: the reference. A
      machine that others slow is slow for seconds; a moment of it isn't in the times, of which the fastest count.
    """
    launches = [_layers_of(case, mesh, _num_layers(case, mesh, brief)) for case in cases]
    times, reference_ms = _in_turns([launch for launch, _ in launches], mesh, launches_at_once, brief)
    return [ms / num_layers for ms, (_, num_layers) in zip(times, launches, strict=True)], reference_ms


def _in_turns(
    launches: Sequence[Callable[[], jax.Array]], mesh: Mesh, threads: int, brief: bool = False
) -> tuple[list[float], float]:
    """Returns the median milliseconds of each launch by `threads` threads in its fastest round, and the reference's."""
    rounds, seconds = (_BRIEF_ROUNDS, _BRIEF_SECONDS) if brief else (_ROUNDS, _SECONDS)
    for launch in launches:
        jax.block_until_ready(launch())  # compiles
    before_ms = _reference_ms(mesh.devices.flat[0])
    times = [math.inf] * len(launches)
    for _, (place, launch) in itertools.product(range(rounds), enumerate(launches)):
        taken = statistics.median(time_launches(launch, threads, least=1, seconds=seconds))
        times[place] = min(times[place], taken)
    return times, min(before_ms, _reference_ms(mesh.devices.flat[0]))


def _reference_ms(device: jax.Device) -> float:
    return min(time_launches(_reference(device), 1, least=2, seconds=_REFERENCE_SECONDS))


@functools.cache
def _reference(device: jax.Device) -> Callable[[], jax.Array]:
    matrix = jax.device_put(np.ones((_REFERENCE_SIZE, _REFERENCE_SIZE), np.float32), device)
    product = jax.jit(jnp.dot).lower(matrix, matrix).compile()
    jax.block_until_ready(product(matrix, matrix))  # the first launch takes longer
    return lambda: product(matrix, matrix)


def _num_layers(case: LayerCase, mesh: Mesh, brief: bool) -> int:
    enough = math.ceil(_FLOPS / case.flops) if case.has_weights else 0
    if mesh.size > 1:
        return 1 if brief and case.flops * mesh.size > _FLOPS * _LAYERS_SHARED else _LAYERS_SHARED
    return min(max(enough, 1), _BRIEF_MOST_LAYERS) if brief else min(max(enough, _LEAST_LAYERS), _MOST_LAYERS)


def _layers_of(case: LayerCase, mesh: Mesh, num_layers: int) -> tuple[Callable[[], jax.Array], int]:
    """Returns a launch of a few layers of a case, and their number, 1 for a pool."""
    random = np.random.default_rng(0)

    def values(shape: Sequence[int], dtype: str = case.dtype, scale: float = 1.0) -> np.ndarray:
        drawn = random.standard_normal(min(math.prod(shape), _MOST_DRAWN), np.float32) * np.float32(scale)
        return np.resize((abs(drawn) if dtype == "uint8" else drawn).astype(dtype), shape)

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
            bias = bias + 0 * y[0, 0, 0, : case.out_channels].astype(bias.dtype)  # makes the next layer depend on it
        assert y is not None
        return y[None]

    spread, whole = P(mesh.axis_names), P()
    function = jax.jit(
        jax.shard_map(layers, mesh=mesh, in_specs=(whole, whole, spread, spread), out_specs=spread, check_vma=False),
        compiler_options=compiler_options_of(()),
    )
    held = sum(array.nbytes for kernel in kernels for array in kernel)
    num_copies = min(_MOST_COPIES, math.ceil(_WEIGHTS_BYTES / held)) if held else 1
    copies = itertools.cycle(
        [
            # Aligned, so that devices share each array as in a network.
            jax.device_put([[aligned(array) for array in kernel] for kernel in kernels], NamedSharding(mesh, whole))
            for _ in range(num_copies)
        ]
    )
    operands = (
        jax.device_put(bias, NamedSharding(mesh, whole)),
        *(_on_each_device(array, mesh) for array in (x, residual)),
    )
    return lambda: function(next(copies), *operands), len(kernels)


def measure_transition(wanted: Transition, mesh: Mesh, launches_at_once: int = 1) -> tuple[list[float], float]:
    """Measures the milliseconds in which all groups of `mesh` do a transition, on a tensor of about `wanted.values`.

    Returns:
      As `measure_cases`, of one time.
    """
    model = mesh.shape[MODEL_AXIS]
    operation, held = _operation(wanted.operation), wanted.values
    if ">" in wanted.operation and not wanted.operation.startswith(Layout.WHOLE):
        held //= model
    # Shapes are divisible along every axis; a halo is one row above and one below.
    shape = {"halo": (1, 2, 1), "loop": (_CHUNKS, 1, 1)}.get(wanted.operation, (model, model, 1))
    channels = max(1, round(held / math.prod(shape) / model)) * model
    x = np.zeros((mesh.size, *shape, channels), wanted.dtype)
    spread = P(mesh.axis_names)
    function = jax.jit(
        jax.shard_map(lambda x: operation(x[0])[None], mesh=mesh, in_specs=spread, out_specs=spread, check_vma=False)
    )
    placed = jax.device_put(x, NamedSharding(mesh, spread))
    return _in_turns([lambda: function(placed)], mesh, launches_at_once)


def _operation(name: str) -> Callable[[jax.Array], jax.Array]:
    match name:
        case "loop":  # computes something, as XLA would remove an empty loop
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
        return LOWERINGS[case.lowering].apply(x, kernel, Finish(_call(case), bias, residual))

    return compute


def _call(case: LayerCase) -> Call:
    return case.call(case.activation or "RELU")


def _kernel(case: LayerCase, values: Callable[..., np.ndarray]) -> list[np.ndarray]:
    if not case.has_weights:
        return []
    shape = (case.kernel, case.kernel, case.in_channels // case.groups, case.out_channels)
    kernel = values(shape, "float32", math.prod(shape[:3]) ** -0.5)
    return LOWERINGS[case.lowering].prepare(kernel, _call(case))


def _on_each_device(array: np.ndarray | None, mesh: Mesh) -> jax.Array | None:
    if array is None:
        return None
    sharding = NamedSharding(mesh, P(mesh.axis_names))
    return jax.device_put(np.broadcast_to(array, (mesh.size, *array.shape)), sharding)
