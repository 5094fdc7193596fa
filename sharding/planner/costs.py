"""What a layer and the movements around it cost: the planner's input."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from cambrian.sharding.layer import LayerSpec
from cambrian.sharding.partition import Layout, Partition


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """One way of computing a layer under a given partition.

    Attributes:
      lowering: names a function of the models package.
      micro_batch: number of samples that a device computes at a time; 0 for all its local samples at once.
      milliseconds: for all local samples of a launch, with the partition's own communication (halo exchange, the sum
        of input_channels), without the transitions around the layer.
      weight_bytes: of the parameters that each device holds.
      working_bytes: of everything else that a device holds while it computes the layer.
    """

    lowering: str
    micro_batch: int
    milliseconds: float
    weight_bytes: int
    working_bytes: int


class Costs(Protocol):
    """Costs on one mesh with one batch size. Nothing may be negative; layers of one geometry cost the same."""

    def layer(self, layer: LayerSpec, partition: Partition) -> Sequence[Option]:
        """The ways of computing `layer` under `partition`; those whose micro-batch doesn't divide are passed over."""
        ...

    def transition_ms(self, shape: tuple[int, int, int], source: Layout, target: Layout) -> float:
        """Milliseconds to turn a tensor of samples (H, W, C) from one layout into another, all local samples."""
        ...

    def rechunk_ms(self, shape: tuple[int, int, int], layout: Layout) -> float:
        """Milliseconds to write a tensor of samples (H, W, C) out and read it again in other chunks."""
        ...


Geometry = tuple


def geometry(layer: LayerSpec) -> Geometry:
    """What a layer's cost depends on: all of it but the names."""
    window = (layer.kernel, layer.stride, layer.padding)
    return layer.kind, layer.in_shape, layer.out_shape, window, layer.residual is not None, layer.relu
