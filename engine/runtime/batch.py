"""Batches: an array (N, …), or a pytree of arrays with the same N, on the host."""

from typing import Any

import jax
import numpy as np

from cambrian.sharding import Specs, UsageError


def num_samples(batch: Any) -> int:
    """The number N of samples of a batch.

    Raises:
      TypeError: if a leaf isn't an array.
      UsageError: if the arrays have different N.
    """
    leaves = jax.tree.leaves(batch)
    for leaf in leaves:
        if not isinstance(leaf, (np.ndarray, jax.Array)):
            raise TypeError(f"inputs must be a NumPy or JAX array, or a pytree of arrays, got {type(leaf).__name__}")
    lengths = {len(leaf) for leaf in leaves}
    if len(lengths) != 1:
        raise UsageError(f"the arrays of a batch must have the same number of samples, got {sorted(lengths)}")
    return lengths.pop()


def samples(batch: Any, start: int, stop: int) -> Any:
    """The samples from `start` to `stop` of a batch."""
    return jax.tree.map(lambda array: array[start:stop], batch)


def empty_batch(specs: Specs) -> Any:
    """A batch of no samples."""
    return jax.tree.map(lambda spec: np.empty((0, *spec.shape[1:]), spec.dtype), specs)


def fetch(batch: Any) -> Any:
    """Waits for a batch on the devices and moves it to the host."""
    # np.asarray alone waits for one device of each group of replicas, while the others still compute.
    return jax.tree.map(np.asarray, jax.block_until_ready(batch))
