"""Computes samples in chunks, one after another, so that their activations stay in the caches."""

from collections.abc import Callable, Sequence

import jax
from jax import lax


def in_chunks(
    function: Callable[[Sequence[jax.Array]], list[jax.Array]], arrays: Sequence[jax.Array], chunks: int
) -> list[jax.Array]:
    """Computes arrays (N, …) from arrays (N, …), N / `chunks` samples at a time."""
    if chunks == 1:
        return function(arrays)
    stacked = lax.map(function, [array.reshape(chunks, -1, *array.shape[1:]) for array in arrays])
    return [array.reshape(-1, *array.shape[2:]) for array in stacked]
