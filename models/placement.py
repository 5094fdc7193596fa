"""Parameters as a plan wants them: each kernel transformed for its lowering, then cut for its partition."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from jax.sharding import PartitionSpec as P

from models.lowerings import LOWERINGS
from sharding import MODEL_AXIS, Kind, LayerSpec, Network, Partition, Plan, TensorSpec

_T = TypeVar("_T")

# The dimension of a kernel and of a bias that each partition cuts; the rest are held whole by every device.
_KERNEL_CUT = {Partition.CHANNELS: -1, Partition.INPUT_CHANNELS: -2}
_BIAS_CUT = {Partition.CHANNELS: -1}


def place_params(
    network: Network, plan: Plan, folded: Mapping[str, np.ndarray], model_parallel: int, dtype: str
) -> tuple[list[np.ndarray], tuple[TensorSpec, ...]]:
    """Transforms and cuts the weights of `network`.

    A cut tensor gets a leading dimension of `model_parallel`, sharded over the model axis: the shards lie one after the
    other in memory, so that the devices of a group can share them without a copy.

    Args:
      folded: `LAYER.kernel` (kh, kw, C_in, C_out) or (C_in, C_out) and `LAYER.bias` (C_out,), float32.
      dtype: of the kernels; biases stay float32, the type they are added in.

    Returns:
      The arrays and their specs, in the network's order: of each layer `LAYER.kernel`, or `LAYER.kernel.0`, `.1`, …
      where its lowering keeps several, then `LAYER.bias`.
    """
    arrays, specs = [], []

    def add(name: str, array: np.ndarray, cut: int | None) -> None:
        if cut is not None and model_parallel > 1:
            array = np.stack(np.split(array, model_parallel, axis=cut))
            spec = P(MODEL_AXIS)
        else:
            spec = P()
        arrays.append(np.ascontiguousarray(array))
        specs.append(TensorSpec(name, array.shape, str(array.dtype), spec))

    for layer in network:
        if layer.has_weights:
            layer_plan = plan[layer.name]
            kernels = transformed_kernel(layer, layer_plan.lowering, folded[f"{layer.name}.kernel"])
            for number, kernel in enumerate(kernels):
                name = f"{layer.name}.kernel" + (f".{number}" if len(kernels) > 1 else "")
                add(name, kernel.astype(dtype), _KERNEL_CUT.get(layer_plan.partition))
            add(f"{layer.name}.bias", folded[f"{layer.name}.bias"], _BIAS_CUT.get(layer_plan.partition))
    return arrays, tuple(specs)


def params_by_layer(names: Sequence[str], params: Sequence[_T]) -> dict[str, list[_T]]:
    """Groups parameters in the order of `place_params` by layer: kernels, then bias."""
    grouped: dict[str, list[_T]] = {}
    for name, param in zip(names, params, strict=True):
        layer = re.sub(r"\.(kernel(\.\d+)?|bias)$", "", name)
        grouped.setdefault(layer, []).append(param)
    return grouped


def transformed_kernel(layer: LayerSpec, lowering: str, kernel: np.ndarray) -> Sequence[np.ndarray]:
    """The arrays that `lowering` keeps for `kernel`, float32."""
    return [kernel] if layer.kind == Kind.DENSE else LOWERINGS[lowering].transform(kernel)
