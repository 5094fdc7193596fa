"""Executes a plan by explicit SPMD: the function that runs on every device under `shard_map`."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from cambrian.models.execution.layered_network import LayeredNetwork
from cambrian.models.lowerings import LOWERINGS, Finish
from cambrian.models.lowerings.lowering import isolated
from cambrian.models.lowerings.pooling import lowest, max_pool, mean_pool
from cambrian.sharding import (
    Kind,
    LayerPlan,
    LayerSpec,
    Layout,
    MeshShape,
    Partition,
    Plan,
    halo_exchange,
    layouts,
    transition,
)
from cambrian.sharding.plan_semantics import halo_rows, loops, reads, transition_source

LayerParams = Mapping[str, Sequence[jax.Array]]  # layer name → arrays of its kernel, then its bias
# (tensor, layout) → value. The images are tensor None; the first layout of a tensor is the one it was computed in.
_Values = dict[tuple[str | None, Layout], jax.Array]


def apply_planned(
    network: LayeredNetwork,
    plan: Plan,
    params: LayerParams,
    images: jax.Array,
    images_layout: Layout,
    dtype: jnp.dtype,
    mesh: MeshShape,
    isolate: bool,
) -> jax.Array:
    """Computes the output of `network` on one device, with the collectives of `plan` over the model axis.

    Args:
      network: layers, in the order of computation.
      plan: plan of the network.
      params: local parameters, as placed by `place_params`.
      images: local inputs (N, H, W, C), which `network.prepare` takes.
      images_layout: layout of the images over the model axis.
      dtype: dtype of activations in floating point.
      mesh: sizes of the mesh axes.
      isolate: whether XLA compiles each layer separately. Otherwise XLA:CPU recomputes a residual stream in each of its
        readers, back to the start of the stage.

    Returns:
      Output (N, H', W', C') of the last layer, in its output dtype, in the output layout of its partition.
    """
    tensors, last = _Tensors({(None, images_layout): images}), network.layers[-1]
    for number, part in enumerate(parts := loops(network.layers, plan)):
        later = {name for other in parts[number + 1 :] for layer in other for name in (layer.input, layer.residual)}
        _run_part(part, network, plan, params, tensors, later | {last.name}, dtype, mesh, isolate)
    return tensors.read(last.name, layouts(last, plan[last.name].partition)[1])


class _Tensors:
    """The activations computed so far, in every layout in which they were read."""

    def __init__(self, values: _Values):
        self.values = dict(values)

    def read(self, name: str | None, layout: Layout) -> jax.Array:
        if (name, layout) not in self.values:
            source = transition_source([found for other, found in self.values if other == name])
            self.values[name, layout] = transition(self.values[name, source], source, layout)
        return self.values[name, layout]


def _run_part(
    part: Sequence[LayerSpec],
    network: LayeredNetwork,
    plan: Plan,
    params: LayerParams,
    tensors: _Tensors,
    later: set[str | None],
    dtype: jnp.dtype,
    mesh: MeshShape,
    isolate: bool,
) -> None:
    """Computes the layers of one loop and adds the outputs that are read `later` to `tensors`."""
    inside = {layer.name for layer in part}
    outside: _Values = {}
    for layer in part:
        for name, layout in reads(layer, plan[layer.name].partition):
            if name is None and layout == Layout.CHANNELS:
                layout = Layout.WHOLE  # images are prepared with all of their channels, then cut
            if name not in inside:
                outside[name, layout] = tensors.read(name, layout)

    names: list[tuple[str | None, Layout]] = []

    def compute(values: Sequence[jax.Array]) -> list[jax.Array]:
        # Images are prepared where they are read: in a loop, for one chunk at a time.
        pairs = zip(outside, values, strict=True)
        local = _Tensors({key: network.prepare(x).astype(dtype) if key[0] is None else x for key, x in pairs})
        for layer in part:
            layer_plan = plan[layer.name]
            operands = [local.read(*key) for key in reads(layer, layer_plan.partition)]
            run = layer_function(layer, layer_plan, dtype, network, mesh)
            run = isolated(run) if isolate and not LOWERINGS[layer_plan.lowering].opaque else run
            made = layouts(layer, layer_plan.partition)[1]
            local.values[layer.name, made] = run(params.get(layer.name, ()), *operands)
        names[:] = [key for key in local.values if key[0] in inside & later]
        return [local.values[key] for key in names]

    samples = next(iter(outside.values())).shape[0]
    micro_batch = plan[part[0].name].micro_batch or samples
    made = in_chunks(compute, list(outside.values()), max(1, samples // micro_batch))
    tensors.values |= zip(names, made, strict=True)


def in_chunks(
    function: Callable[[Sequence[jax.Array]], list[jax.Array]], arrays: Sequence[jax.Array], chunks: int
) -> list[jax.Array]:
    """Computes arrays (N, …) from arrays (N, …) in chunks of samples, whose activations stay in the caches."""
    if chunks == 1:
        return function(arrays)
    size = len(arrays[0]) // chunks

    def compute_chunk(number: jax.Array) -> list[jax.Array]:
        # Not an axis of chunks: XLA:CPU copies the whole array to give chunks of one sample another layout.
        return function([lax.dynamic_slice_in_dim(array, number * size, size) for array in arrays])

    stacked = lax.map(compute_chunk, jnp.arange(chunks))
    return [array.reshape(-1, *array.shape[2:]) for array in stacked]


def layer_function(
    layer: LayerSpec, plan: LayerPlan, dtype: jnp.dtype, network: LayeredNetwork, mesh: MeshShape
) -> Callable[..., jax.Array]:
    """Returns the function (params, input, optional residual) → output of a layer on one device."""
    integers = network.integers.get(layer.name)

    def restored(x: jax.Array, name: str | None) -> jax.Array:
        is_float = jnp.issubdtype(x.dtype, jnp.floating)  # float32 from a dense layer, whatever `dtype`
        return x.astype(dtype) if is_float else network.stored[name].restore(x, dtype)

    def with_halo(x: jax.Array, fill: float) -> jax.Array:
        return halo_exchange(x, *halo_rows(layer), fill) if plan.partition == Partition.ROWS else x

    def compute(params: Sequence[jax.Array], x: jax.Array, residual: jax.Array | None = None) -> jax.Array:
        if layer.kind == Kind.MEAN_POOL:
            pooled = mean_pool(restored(x, layer.input), layer.in_shape[:2], plan.partition == Partition.ROWS)
            return pooled.astype(dtype)
        call = network.call(layer, plan, len(x), str(dtype), mesh)
        if layer.kind == Kind.MAX_POOL:
            return max_pool(with_halo(x, lowest(x.dtype)), call.window)
        *kernel, bias = params
        if integers is None:
            x, residual = restored(x, layer.input), None if residual is None else restored(residual, layer.residual)
        elif integers.images is not None:
            x = integers.images.quantize(x)
        return LOWERINGS[plan.lowering].apply(with_halo(x, 0), kernel, Finish(call, bias, residual))

    return compute
