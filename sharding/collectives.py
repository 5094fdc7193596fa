"""Collectives over the model axis, for use inside `jax.shard_map`.

Activations are (N, H, W, C), local to one device. Partition `rows` exchanges halos before each window, partition
`input_channels` sums partial results, and a transition changes the layout between layers that want different ones.
"""

import jax
import jax.numpy as jnp
from jax import lax

from cambrian.sharding.mesh import MODEL_AXIS
from cambrian.sharding.partition import Layout

_CUT_DIMENSION = {Layout.SAMPLES: 0, Layout.ROWS: 1, Layout.CHANNELS: 3}


def transition(x: jax.Array, source: Layout, target: Layout) -> jax.Array:
    """Changes the layout of `x` from `source` to `target`.

    To whole: `all_gather`. From whole: a local slice. Between two cuts: one `all_to_all`.
    The dimension that `target` cuts must be divisible by the size of the model axis.
    """
    size = lax.axis_size(MODEL_AXIS)
    if source == target or size == 1:
        return x
    if target == Layout.WHOLE:
        return lax.all_gather(x, MODEL_AXIS, axis=_CUT_DIMENSION[source], tiled=True)
    split = _CUT_DIMENSION[target]
    if source == Layout.WHOLE:
        part = x.shape[split] // size
        return lax.dynamic_slice_in_dim(x, lax.axis_index(MODEL_AXIS) * part, part, split)
    return lax.all_to_all(x, MODEL_AXIS, split_axis=split, concat_axis=_CUT_DIMENSION[source], tiled=True)


def halo_exchange(x: jax.Array, above: int, below: int, fill: float = 0.0) -> jax.Array:
    """Extends a row-cut `x` by rows of its neighbours.

    The halo of the first and last device is padded with `fill`, so the result needs no further vertical padding. A halo
    larger than the neighbour's shard spans several neighbours.

    Args:
      x: (N, H / model, W, C).
      above: number of rows added before the first row.
      below: number of rows added after the last row.
      fill: value of rows outside the image.

    Returns:
      (N, above + H / model + below, W, C).
    """
    upper = _rows_of_neighbours(x, above, step=1, fill=fill)
    lower = _rows_of_neighbours(x, below, step=-1, fill=fill)
    return jnp.concatenate([*reversed(upper), x, *lower], axis=1)


def _rows_of_neighbours(x: jax.Array, count: int, step: int, fill: float) -> list[jax.Array]:
    size, rows = lax.axis_size(MODEL_AXIS), x.shape[1]
    index = lax.axis_index(MODEL_AXIS)
    parts = []
    for hop in range(1, -(-count // rows) + 1):
        take = min(rows, count - (hop - 1) * rows)
        part = x[:, rows - take :] if step == 1 else x[:, :take]
        # Devices at the edge have no source: ppermute gives them zeros.
        pairs = [(i, i + step * hop) for i in range(size) if 0 <= i + step * hop < size]
        part = lax.ppermute(part, MODEL_AXIS, pairs) if pairs else jnp.zeros_like(part)
        if fill:
            outside = index < hop if step == 1 else index >= size - hop
            part = jnp.where(outside, jnp.asarray(fill, part.dtype), part)
        parts.append(part)
    return parts


def sum_over_model_axis(x: jax.Array) -> jax.Array:
    """Sums partial results over the devices of a group; each device gets the total."""
    return lax.psum(x, MODEL_AXIS)
