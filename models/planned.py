"""A network computed as its plan says, by explicit SPMD: the function that runs on every device under `shard_map`."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from models.cases import out_dtype
from models.lowerings import LOWERINGS, Finish, Window
from models.lowerings.lowering import Padding
from models.pooling import max_pool, mean_pool
from sharding import (
    Kind,
    LayerPlan,
    LayerSpec,
    Layout,
    Network,
    Partition,
    Plan,
    halo_exchange,
    layouts,
    transition,
)

LayerParams = Mapping[str, Sequence[jax.Array]]  # layer name → its kernel's arrays, then its bias
_Values = dict[tuple[str | None, Layout], jax.Array]  # the images' name is None


def apply_planned(
    network: Network, plan: Plan, params: LayerParams, images: jax.Array, images_layout: Layout, isolate: bool
) -> jax.Array:
    """The outputs of `network` on one device, with the collectives of `plan` over the model axis.

    Args:
      params: local, as `place_params` cuts them.
      images: local (N, H, W, C), normalised; their dtype is the one activations have.
      images_layout: how the images lie on the model axis.
      isolate: whether each layer is compiled on its own, unless it is so anyway. XLA:CPU otherwise computes a residual
        stream anew in each of its readers, all the way back to the stage's start.

    Returns:
      The last layer's output (N, H', W', C') in float32, in the layout its partition leaves.
    """
    tensors = _Tensors({(None, images_layout): images}, {None: images_layout})
    for number, part in enumerate(parts := _loops(network, plan)):
        later = {name for other in parts[number + 1 :] for layer in other for name in (layer.input, layer.residual)}
        _run_part(part, plan, params, tensors, later | {network[-1].name}, images.dtype, isolate)
    return tensors.made(network[-1].name)


class _Tensors:
    """The activations made so far, each in every layout it was needed in."""

    def __init__(self, values: _Values, made_in: dict[str | None, Layout]):
        self.values, self.made_in = values, made_in

    def read(self, name: str | None, layout: Layout) -> jax.Array:
        # Kept, so that two readers of one tensor in one layout share the transition.
        if (name, layout) not in self.values:
            # From a copy that another reader has gathered, a slice needs no communication.
            source = Layout.WHOLE if (name, Layout.WHOLE) in self.values else self.made_in[name]
            self.values[name, layout] = transition(self.values[name, source], source, layout)
        return self.values[name, layout]

    def made(self, name: str | None) -> jax.Array:
        return self.values[name, self.made_in[name]]


def _loops(network: Network, plan: Plan) -> list[list[LayerSpec]]:
    """Runs of layers that compute the same number of a device's samples at a time."""

    def chunks(layer: LayerSpec) -> tuple[int, bool]:
        layer_plan = plan[layer.name]
        return layer_plan.micro_batch, layer_plan.partition == Partition.SAMPLES

    return [list(part) for _, part in itertools.groupby(network, key=chunks)]


def _run_part(
    part: Sequence[LayerSpec],
    plan: Plan,
    params: LayerParams,
    tensors: _Tensors,
    later: set[str | None],
    dtype: jnp.dtype,
    isolate: bool,
) -> None:
    """Computes the layers of one loop and adds to `tensors` those of their outputs that are read `later`."""
    inside = {layer.name for layer in part}
    outside: _Values = {}
    for layer in part:
        for name, layout in _reads(layer, plan[layer.name]):
            if name not in inside:
                outside[name, layout] = tensors.read(name, layout)
    made_in: dict[str | None, Layout] = {layer.name: layouts(layer, plan[layer.name].partition)[1] for layer in part}

    def compute(values: _Values) -> _Values:
        local = _Tensors(dict(values), made_in | dict(values.keys()))
        for layer in part:
            layer_plan = plan[layer.name]
            operands = [local.read(name, layout) for name, layout in _reads(layer, layer_plan)]
            run = layer_function(layer, layer_plan, dtype)
            run = isolated(run) if isolate and not LOWERINGS[layer_plan.lowering].opaque else run
            local.values[layer.name, made_in[layer.name]] = run(params.get(layer.name, ()), *operands)
        return {key: value for key, value in local.values.items() if key[0] in inside & later}

    samples = next(iter(outside.values())).shape[0]
    micro_batch = plan[part[0].name].micro_batch or samples
    chunks = max(1, samples // micro_batch)
    made = compute(outside) if chunks == 1 else _in_chunks(compute, outside, chunks)
    tensors.values |= made
    tensors.made_in |= made_in


def _in_chunks(compute: Callable[[_Values], _Values], values: _Values, chunks: int) -> _Values:
    def cut(value: jax.Array) -> jax.Array:
        return value.reshape(chunks, -1, *value.shape[1:])

    names: list[tuple[str | None, Layout]] = []

    def body(cut_values: list[jax.Array]) -> list[jax.Array]:
        made = compute(dict(zip(values, cut_values, strict=True)))
        names[:] = made
        return list(made.values())

    stacked = lax.map(body, [cut(value) for value in values.values()])
    return {name: array.reshape(-1, *array.shape[2:]) for name, array in zip(names, stacked, strict=True)}


def _reads(layer: LayerSpec, plan: LayerPlan) -> list[tuple[str | None, Layout]]:
    reads, makes = layouts(layer, plan.partition)
    return [(layer.input, reads)] + ([] if layer.residual is None else [(layer.residual, makes)])


def isolated(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    jitted = jax.jit(function)

    def call(*operands) -> jax.Array:
        with set_xla_metadata(inlineable="false"):
            return jitted(*operands)

    return call


def layer_function(layer: LayerSpec, plan: LayerPlan, dtype: jnp.dtype) -> Callable[..., jax.Array]:
    """(params, input, residual if there is one) → output, of one layer on one device."""

    def compute(params: Sequence[jax.Array], x: jax.Array, residual: jax.Array | None = None) -> jax.Array:
        if layer.kind == Kind.MEAN_POOL:
            return mean_pool(x, layer.in_shape[:2], plan.partition == Partition.ROWS).astype(dtype)
        if layer.kind == Kind.MAX_POOL:
            x, padding = _pad_window(layer, plan.partition, x, fill=-jnp.inf)
            return max_pool(x, Window(layer.kernel, layer.stride, padding))
        *kernel, bias = params
        summed = plan.partition == Partition.INPUT_CHANNELS
        x, padding = _pad_window(layer, plan.partition, x, fill=0.0)
        window = Window(layer.kernel, layer.stride, padding)
        finish = Finish(bias, residual, layer.relu, out_dtype(layer.kind, str(dtype)), summed)
        return LOWERINGS[plan.lowering].apply(x, kernel, window, finish)

    return compute


def _pad_window(layer: LayerSpec, partition: Partition, x: jax.Array, fill: float) -> tuple[jax.Array, Padding]:
    sides = (layer.padding, layer.padding)
    if partition != Partition.ROWS:
        return x, (sides, sides)
    below = max(0, layer.kernel - layer.padding - layer.stride)
    return halo_exchange(x, layer.padding, below, fill), ((0, 0), sides)
