"""Measures how long cases take on the present devices."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from models.cases import Case
from models.cost_table import Transition
from models.lowerings import LOWERINGS, Finish
from models.placement import local_kernels
from models.planned import isolated
from models.pooling import max_pool, mean_pool
from sharding import MODEL_AXIS, Kind, Layout, halo_exchange, sum_over_model_axis, transition

# Layers of one measurement, each with weights of its own, as in a network, so that not all of them lie in the cache:
# more where they are so small that the launch itself would count, few where many devices share cores and caches.
_LEAST_LAYERS, _MOST_LAYERS, _LAYERS_SHARED = 4, 16, 2
_FLOPS = 2**30
# In a network a layer's weights have left the caches since its last run. So the runs take turns with copies of them
# that fill this many bytes, a few times a last-level cache; beyond so many copies they are too small to matter.
_WEIGHTS_BYTES, _MOST_COPIES = 2**26, 16
_SECONDS = 0.1
_LEAST_RUNS = 3
_CHUNKS = 4


def measure_case(case: Case, mesh: Mesh, launches_at_once: int = 1) -> float:
    """Milliseconds in which all devices of `mesh` compute one layer of this case, each on samples of its own.

    So many host threads let them do so at once. The median over several runs of a few such layers, which depend on each
    other.
    """
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
    held = mesh.size * sum(array.nbytes for kernel in kernels for array in kernel)
    num_copies = min(_MOST_COPIES, math.ceil(_WEIGHTS_BYTES / held)) if held else 1
    copies = itertools.cycle(
        [
            jax.device_put([[array.copy() for array in kernel] for kernel in kernels], NamedSharding(mesh, whole))
            for _ in range(num_copies)
        ]
    )
    operands = (
        jax.device_put(bias, NamedSharding(mesh, whole)),
        *(_on_each_device(array, mesh) for array in (x, residual)),
    )
    return median_milliseconds(lambda: function(next(copies), *operands), launches_at_once) / len(kernels)


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
    return median_milliseconds(lambda: function(placed), launches_at_once)


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


def median_milliseconds(call: Callable[[], jax.Array], threads: int = 1) -> float:
    """Of several calls after the first, which compiles; by so many threads at once."""
    jax.block_until_ready(call())
    end = time.perf_counter() + _SECONDS

    def measure(_: int) -> list[float]:
        times = []
        while len(times) < _LEAST_RUNS or time.perf_counter() < end:
            start = time.perf_counter()
            jax.block_until_ready(call())
            times.append(1e3 * (time.perf_counter() - start))
        return times

    with ThreadPoolExecutor(threads) as pool:
        return statistics.median(itertools.chain.from_iterable(pool.map(measure, range(threads))))


def _layer(case: Case) -> Callable[..., jax.Array]:
    def compute(kernel, bias, x, residual):
        if case.kind == Kind.MAX_POOL:
            return max_pool(x, case.window)
        if case.kind == Kind.MEAN_POOL:
            return mean_pool(x, (case.rows, case.columns), summed=False)
        finish = Finish(bias, residual, True, case.out_dtype)
        return LOWERINGS[case.lowering].apply(x, kernel, case.window, finish)

    return compute


def _kernel(case: Case, values: Callable[..., np.ndarray]) -> list[np.ndarray]:
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
