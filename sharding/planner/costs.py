"""The planner's input: the costs of layers and of the data movement around them."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from cambrian.sharding.layer import LayerSpec
from cambrian.sharding.partition import Layout, Partition


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """One way to compute a layer under a given partition.

    Attributes:
      lowering: name of a lowering in the models package.
      micro_batch: number of samples that a device computes at a time; 0 for all local samples at once.
      milliseconds: time for all local samples of a launch, with the communication inside the layer (halo exchange, sum
        of input_channels) but without the transitions around it.
      weight_bytes: bytes of the layer's parameters on each device.
      working_bytes: bytes of everything else that a device holds while it computes the layer.
      precision: float32, bfloat16 or int8.
    """

    lowering: str
    micro_batch: int
    milliseconds: float
    weight_bytes: int
    working_bytes: int
    precision: str = "float32"


class Costs(Protocol):
    """Costs on one mesh with one batch size. Costs aren't negative, and layers of equal geometry cost the same."""

    def layer(self, layer: LayerSpec, partition: Partition) -> Sequence[Option]:
        """Returns the options for `layer` under `partition`; the planner skips micro-batches that don't divide."""
        ...

    def transition_ms(self, shape: tuple[int, int, int], source: Layout, target: Layout) -> float:
        """Returns the milliseconds to change the layout of a tensor, all local samples of shape (H, W, C)."""
        ...

    def rechunk_ms(self, shape: tuple[int, int, int], layout: Layout) -> float:
        """Returns the milliseconds to write a tensor of samples (H, W, C) out and read it again in other chunks."""
        ...


def geometry(layer: LayerSpec) -> LayerSpec:
    """Returns all that the cost of a layer depends on: the layer with empty names."""
    return dataclasses.replace(layer, name="", input=None, residual=None if layer.residual is None else "")
