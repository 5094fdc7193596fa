"""The communication of each partition over the model axis, for use inside `jax.shard_map`.

Activations are (N, H, W, C), local to one device. Rows need a halo exchange before a window, input channels a sum
after it, and where two neighbouring layers want different layouts a transition stands between them; all of it is here.
"""

import jax
import jax.numpy as jnp
from jax import lax

from cambrian.sharding.mesh import MODEL_AXIS
from cambrian.sharding.partition import Layout

_CUT_DIMENSION = {Layout.SAMPLES: 0, Layout.ROWS: 1, Layout.CHANNELS: 3}


def transition(x: jax.Array, source: Layout, target: Layout) -> jax.Array:
    """Turns `x` from layout `source` into layout `target`.

    To whole: `all_gather`. From whole: a local slice. Between two cuts: one `all_to_all`.
    The dimension that `target` cuts must be divisible by the model axis.
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
    """Adds the neighbours' rows to a row-cut `x`: `above` before the first and `below` after the last.

    At the image's edges the rows are `fill`, so that the result needs no more vertical padding. A halo larger than the
    neighbour's part reaches over several neighbours.

    Args:
      x: (N, H / model, W, C).

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
        # The devices at the edge have no source, for which ppermute gives zeros.
        pairs = [(i, i + step * hop) for i in range(size) if 0 <= i + step * hop < size]
        part = lax.ppermute(part, MODEL_AXIS, pairs) if pairs else jnp.zeros_like(part)
        if fill:
            outside = index < hop if step == 1 else index >= size - hop
            part = jnp.where(outside, jnp.asarray(fill, part.dtype), part)
        parts.append(part)
    return parts


def sum_over_model_axis(x: jax.Array) -> jax.Array:
    """The sum of the group's partial results, the same on each of its devices."""
    return lax.psum(x, MODEL_AXIS)
