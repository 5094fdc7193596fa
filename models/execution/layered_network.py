"""A network as the layers that a plan cuts, with their weights."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np

from cambrian.models.costs.layer_case import case_of, dtype_of
from cambrian.models.lowerings import Call, Scale
from cambrian.sharding import LayerPlan, LayerSpec, MeshShape, Network, Partition


@dataclasses.dataclass(frozen=True, slots=True)
class Integers:
    """How a quantised layer computes on 8-bit integers, see `cambrian.models.graph.quantize`.

    Attributes:
      scales: as in `cambrian.models.lowerings.Finish`.
      out_dtype: uint8, int8 or float32.
      images: how an input in float32 becomes integers; None if it never is in float32.
    """

    scales: tuple[float, float]
    out_dtype: str
    images: Scale | None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LayeredNetwork:
    """A network for inference, on inputs (N, H, W, C).

    Attributes:
      layers: layers in the order of computation.
      params: `LAYER.kernel` (height, width, in, out) and `LAYER.bias` (out,) of each layer with weights, float32; of
        quantised ones the kernel is int8 and the bias in units of the products.
      prepare: function from inputs to the images that the first layer reads, elementwise.
      integers: quantised layer → how it computes.
      stored: layer → how its output is stored as integers, where layers in float32 read it.
    """

    layers: Network
    params: Mapping[str, np.ndarray]
    prepare: Callable[[jax.Array], jax.Array]
    integers: Mapping[str, Integers] = dataclasses.field(default_factory=dict)
    stored: Mapping[str | None, Scale] = dataclasses.field(default_factory=dict)

    def call(self, layer: LayerSpec, plan: LayerPlan, samples: int, precision: str, mesh: MeshShape) -> Call:
        """Returns the call that computes a layer on one device of the mesh, `samples` at a time."""
        case = case_of(layer, plan.partition, plan.lowering, samples, dtype_of(layer, precision), mesh)
        call = case.call(layer.activation, summed=plan.partition == Partition.INPUT_CHANNELS)
        if (integers := self.integers.get(layer.name)) is None:
            return call
        return dataclasses.replace(call, out_dtype=integers.out_dtype, scales=integers.scales)
