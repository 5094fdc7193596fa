"""Batches: an array (N, …), or a pytree of arrays with the same N, on the host."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cambrian.sharding import Specs, TensorSpec, UsageError, local_rows, named_arrays, shardings


def num_samples(batch: Any) -> int:
    """The number N of samples of a batch.

    Raises:
      TypeError: if a leaf isn't an array.
      UsageError: if the arrays have different N.
    """
    leaves = jax.tree.leaves(batch) or [batch]  # None has no leaves
    for leaf in leaves:
        if isinstance(leaf, jax.core.Tracer):
            raise TypeError(
                "an executable is compiled and can't be traced into another program: there, call "
                "executable.program.apply(executable.params, inputs), or a function from cambrian.optimize"
            )
        if not isinstance(leaf, (np.ndarray, jax.Array)):
            raise TypeError(f"inputs must be a NumPy or JAX array, or a pytree of arrays, got {type(leaf).__name__}")
    lengths = {len(leaf) for leaf in leaves}
    if len(lengths) != 1:
        raise UsageError(f"the arrays of a batch must have the same number of samples, got {sorted(lengths)}")
    return lengths.pop()


def check_inputs(inputs: Any, specs: Specs, least: int | None = 1) -> None:
    """Checks that inputs are a batch of at least 1 sample to as many as `specs` have.

    Args:
      least: number of samples that the program takes at least: all, if it mixes them. None for those of a call, which
        may be any number.

    Raises:
      TypeError: if `inputs` isn't an array, where one is expected.
      UsageError: if structure, shapes or dtypes differ from those of `specs`.
    """
    is_single = isinstance(specs, TensorSpec)
    expected, got = jax.tree.structure(specs), jax.tree.structure(inputs)
    if not is_single and got != expected:
        raise UsageError(f"inputs must have the structure {expected}, got {got}")
    arrays = [inputs] if is_single else jax.tree.leaves(inputs)
    for (name, spec), array in zip(named_arrays("inputs", specs).items(), arrays, strict=True):
        if not isinstance(array, (np.ndarray, jax.Array)):
            raise TypeError(f"{name} must be a NumPy or JAX array, got {type(array).__name__}")
        shape, dtype = spec.shape, np.dtype(spec.dtype)
        fits = array.shape[1:] == shape[1:] and array.dtype == dtype
        if not fits or (least is not None and not 1 <= len(array) <= shape[0]):
            count = "N" if least is None else f"1…{shape[0]}"
            raise UsageError(
                f"{name} must have shape ({', '.join(map(str, (count, *shape[1:])))}) and dtype {dtype}, "
                f"got {array.shape} and {array.dtype}"
            )
    if (given := num_samples(inputs)) < (least or 0):  # the same in all arrays
        raise UsageError(f"a program that mixes the samples of a batch takes {least} at a time, got {given}")


def samples(batch: Any, start: int, stop: int) -> Any:
    """The samples from `start` to `stop` of a batch."""
    return jax.tree.map(lambda array: array[start:stop], batch)


def empty_batch(specs: Specs) -> Any:
    """A batch of no samples."""
    return jax.tree.map(lambda spec: np.empty((0, *spec.shape[1:]), spec.dtype), specs)


def put(batch: Any, specs: Specs, mesh: Mesh) -> Any:
    """Moves arrays from the host to the devices of a mesh.

    Args:
      batch: whole arrays; on a mesh over several processes, whole ones or the rows of this process.
    """
    if not mesh.is_multi_process:
        return jax.device_put(batch, shardings(specs, mesh))
    return jax.tree.map(lambda spec, array: _put_part(array, spec, mesh), specs, batch)


def _put_part(array: np.ndarray, spec: TensorSpec, mesh: Mesh) -> jax.Array:
    first = 0 if array.shape == spec.shape else local_rows(mesh, spec.shape[0]).start

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        if not index:
            return array
        start, stop = _bounds(index, spec.shape)
        return array[(slice(start - first, stop - first), *index[1:])]

    return jax.make_array_from_callback(spec.shape, spec.sharding(mesh), shard)


def fetch(batch: Any) -> Any:
    """Waits for a batch on the devices and moves it to the host; of one over several processes, this process's rows."""
    # np.asarray alone waits for one device of each group of replicas, while the others still compute.
    return jax.tree.map(_fetch, jax.block_until_ready(batch))


def _fetch(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = [(*_bounds(shard.index, array.shape), shard) for shard in array.addressable_shards]
    first, last = min(start for start, _, _ in shards), max(stop for _, stop, _ in shards)
    rows = np.empty((last - first, *array.shape[1:]), array.dtype)
    for start, stop, shard in shards:
        rows[(slice(start - first, stop - first), *shard.index[1:])] = shard.data
    return rows


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[int, int]:
    """The first row of a shard, and the one after its last."""
    return index[0].indices(shape[0])[:2]
