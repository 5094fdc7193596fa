"""A network computed as its plan says, by explicit SPMD: the function that runs on every device under `shard_map`."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from models.lowerings import LOWERINGS, Padding, contract_channels
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
    sum_over_model_axis,
    transition,
)


def apply_planned(
    network: Network, plan: Plan, params: Mapping[str, jax.Array], images: jax.Array, images_layout: Layout
) -> jax.Array:
    """The outputs of `network` on one device, with the collectives of `plan` over the model axis.

    Args:
      params: local `LAYER.kernel` and `LAYER.bias`, as `place_params` cuts them.
      images: local (N, H, W, C), normalised; their dtype is the one activations have.
      images_layout: how the images lie on the model axis.

    Returns:
      The last layer's output (N, H', W', C') in float32, in the layout its partition leaves.
    """
    values: dict[tuple[str | None, Layout], jax.Array] = {(None, images_layout): images}
    made_in: dict[str | None, Layout] = {None: images_layout}

    def read(name: str | None, layout: Layout) -> jax.Array:
        # Kept, so that two readers of one tensor in one layout share the transition.
        if (name, layout) not in values:
            # From a copy that another reader has gathered, a slice needs no communication.
            source = Layout.WHOLE if (name, Layout.WHOLE) in values else made_in[name]
            values[name, layout] = transition(values[name, source], source, layout)
        return values[name, layout]

    for layer in network:
        layer_plan = plan[layer.name]
        reads, makes = layouts(layer, layer_plan.partition)
        x = read(layer.input, reads)
        residual = None if layer.residual is None else read(layer.residual, makes)
        y = _compute(layer, layer_plan, params, x, residual)
        values[layer.name, makes] = y if layer is network[-1] else y.astype(images.dtype)
        made_in[layer.name] = makes
    last = network[-1].name
    return values[last, made_in[last]]


def _compute(
    layer: LayerSpec,
    plan: LayerPlan,
    params: Mapping[str, jax.Array],
    x: jax.Array,
    residual: jax.Array | None,
) -> jax.Array:
    if layer.kind == Kind.MEAN_POOL:
        return _mean_pool(layer, plan.partition, x)
    if layer.kind == Kind.MAX_POOL:
        x, padding = _pad_window(layer, plan.partition, x, fill=-jnp.inf)
        return _max_pool(layer, x, padding)
    kernel, bias = params[f"{layer.name}.kernel"], params[f"{layer.name}.bias"]
    if layer.kind == Kind.DENSE:
        y = contract_channels(x, kernel)
    else:
        x, padding = _pad_window(layer, plan.partition, x, fill=0.0)
        y = LOWERINGS[plan.lowering].apply(x, kernel, layer.kernel, layer.stride, padding)
    if plan.partition == Partition.INPUT_CHANNELS:
        y = sum_over_model_axis(y)
    y = y + bias
    if residual is not None:
        y = y + residual.astype(y.dtype)
    return jax.nn.relu(y) if layer.relu else y


def _pad_window(layer: LayerSpec, partition: Partition, x: jax.Array, fill: float) -> tuple[jax.Array, Padding]:
    sides = (layer.padding, layer.padding)
    if partition != Partition.ROWS:
        return x, (sides, sides)
    below = max(0, layer.kernel - layer.padding - layer.stride)
    return halo_exchange(x, layer.padding, below, fill), ((0, 0), sides)


def _mean_pool(layer: LayerSpec, partition: Partition, x: jax.Array) -> jax.Array:
    rows, columns, _ = layer.in_shape
    total = x.astype(jnp.float32).sum(axis=(1, 2), keepdims=True)
    if partition == Partition.ROWS:
        total = sum_over_model_axis(total)
    return total / (rows * columns)


def _max_pool(layer: LayerSpec, x: jax.Array, padding: Padding) -> jax.Array:
    window, strides = (1, layer.kernel, layer.kernel, 1), (1, layer.stride, layer.stride, 1)
    lowest = np.array(-np.inf, x.dtype)
    return lax.reduce_window(x, lowest, lax.max, window, strides, ((0, 0), *padding, (0, 0)))
