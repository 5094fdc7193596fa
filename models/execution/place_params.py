"""Places parameters for a plan: cuts each kernel for its partition, then transforms it for its lowering."""

import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jax.sharding import PartitionSpec as P

from cambrian.models.execution.layered_network import LayeredNetwork
from cambrian.models.lowerings import LOWERINGS
from cambrian.sharding import MODEL_AXIS, MeshShape, Partition, Plan, TensorSpec, local_samples

_T = TypeVar("_T")

# The dimension of a kernel or bias that a partition cuts; under other partitions it is replicated.
_KERNEL_CUT = {Partition.CHANNELS: -1, Partition.INPUT_CHANNELS: -2}
_BIAS_CUT = {Partition.CHANNELS: -1}


def place_params(
    network: LayeredNetwork, plan: Plan, mesh: MeshShape, batch_size: int, precision: str
) -> tuple[list[np.ndarray], tuple[TensorSpec, ...]]:
    """Cuts and transforms the weights of `network`.

    A cut tensor gets a leading dimension of the size of the model axis, sharded over it. Its shards are contiguous in
    memory, so that devices of the host share them without a copy.

    Args:
      network: layers and weights.
      plan: plan of the network.
      mesh: sizes of the mesh axes.
      batch_size: global number of samples per launch.
      precision: dtype of the kernels, or int8. Biases stay float32, the dtype in which they are added, except
        for opaque lowerings.

    Returns:
      The arrays and their specs, in the network's order: for each layer `LAYER.kernel`, or `LAYER.kernel.0`, `.1`, …
      if its lowering has several arrays, then `LAYER.bias`.
    """
    arrays, specs = [], []

    def add(name: str, shards: Sequence[np.ndarray]) -> None:
        array = np.stack(shards) if len(shards) > 1 else np.ascontiguousarray(shards[0])
        arrays.append(array)
        specs.append(TensorSpec(name, array.shape, str(array.dtype), P(MODEL_AXIS) if len(shards) > 1 else P()))

    for layer in network.layers:
        if not layer.has_weights:
            continue
        layer_plan = plan[layer.name]
        partition, lowering = layer_plan.partition, LOWERINGS[layer_plan.lowering]
        samples = layer_plan.micro_batch or local_samples(partition, mesh, batch_size)
        call = network.call(layer, layer_plan, samples, precision, mesh)
        kernel_shards = _cut(network.params[f"{layer.name}.kernel"], _KERNEL_CUT.get(partition), mesh.model)
        of_shards = [lowering.prepare(shard, call) for shard in kernel_shards]
        kernels = list(zip(*of_shards, strict=True))
        for number, shards in enumerate(kernels):
            add(f"{layer.name}.kernel" + (f".{number}" if len(kernels) > 1 else ""), shards)
        bias = lowering.prepare_bias(network.params[f"{layer.name}.bias"], call)
        add(f"{layer.name}.bias", _cut(bias, _BIAS_CUT.get(partition), mesh.model))
    return arrays, tuple(specs)


def _cut(array: np.ndarray, axis: int | None, parts: int) -> list[np.ndarray]:
    return [array] if axis is None else np.split(array, parts, axis=axis)


def params_by_layer(names: Sequence[str], params: Sequence[_T]) -> dict[str, list[_T]]:
    """Groups parameters from `place_params` by layer: arrays of the kernel, then the bias."""
    grouped: dict[str, list[_T]] = {}
    for name, param in zip(names, params, strict=True):
        layer = re.sub(r"\.(kernel(\.\d+)?|bias)$", "", name)
        grouped.setdefault(layer, []).append(param)
    return grouped
