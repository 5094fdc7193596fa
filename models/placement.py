"""Parameters as a plan wants them: each kernel transformed for its lowering, then cut for its partition."""

from collections.abc import Mapping

import numpy as np
from jax.sharding import PartitionSpec as P

from models.lowerings import LOWERINGS
from sharding import MODEL_AXIS, Kind, LayerPlan, LayerSpec, Network, Partition, Plan, TensorSpec

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
      The arrays and their specs, in the network's order.
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
            kernel = _transformed(layer, layer_plan, folded[f"{layer.name}.kernel"]).astype(dtype)
            add(f"{layer.name}.kernel", kernel, _KERNEL_CUT.get(layer_plan.partition))
            add(f"{layer.name}.bias", folded[f"{layer.name}.bias"], _BIAS_CUT.get(layer_plan.partition))
    return arrays, tuple(specs)


def _transformed(layer: LayerSpec, plan: LayerPlan, kernel: np.ndarray) -> np.ndarray:
    return kernel if layer.kind == Kind.DENSE else LOWERINGS[plan.lowering].transform(kernel)
