"""The plan: for every layer how the model axis cuts it (partition) and how it is computed (lowering)."""

import dataclasses
from collections.abc import Mapping

from sharding.errors import UsageError
from sharding.layer import Network
from sharding.mesh import MeshShape
from sharding.partition import Partition, refusal


@dataclasses.dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer's part of a plan.

    Attributes:
      lowering: names a function of the models package.
      micro_batch: number of samples a device computes at a time; 0 for all that it has.
    """

    partition: Partition
    lowering: str
    micro_batch: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """One `LayerPlan` for each layer of a network, in its order.

    Attributes:
      layers: (layer name, its plan) pairs.
      notes: in words, where the plan is not what one would expect, such as layers left whole.
    """

    layers: tuple[tuple[str, LayerPlan], ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> LayerPlan:
        return dict(self.layers)[name]

    def check(self, network: Network, mesh: MeshShape, batch_size: int) -> None:
        """Raises UsageError if the plan isn't for this network, or the mesh can't cut a layer as it says."""
        names, planned = [layer.name for layer in network], [name for name, _ in self.layers]
        if planned != names:
            raise UsageError(f"the plan needs the layers {names}, got {planned}")
        mesh.check_batch_size(batch_size)
        for layer in network:
            if reason := refusal(layer, self[layer.name].partition, mesh, batch_size):
                raise UsageError(f"mesh {mesh}: {reason}")

    def intra_sample_flops_fraction(self, network: Network, mesh: MeshShape) -> float:
        """Share of the network's arithmetic that the model axis cuts within a sample, from 0 to 1."""
        if mesh.model == 1:
            return 0.0
        cut = sum(layer.flops for layer in network if self[layer.name].partition.intra_sample)
        return cut / sum(layer.flops for layer in network)

    def to_json(self) -> dict[str, dict[str, str]]:
        """Layer name → partition and lowering, in the network's order."""
        return {name: {"partition": str(p.partition), "lowering": p.lowering} for name, p in self.layers}

    @classmethod
    def from_json(cls, layers: Mapping[str, Mapping[str, str]]) -> "Plan":
        """The inverse of `to_json`.

        Raises:
          UsageError: if a partition is unknown or a layer's entry has other keys.
        """
        planned = []
        for name, entry in layers.items():
            if set(entry) != {"partition", "lowering"}:
                raise UsageError(f"plan of {name} needs partition and lowering, got {sorted(entry)}")
            if entry["partition"] not in list(Partition):
                known = ", ".join(Partition)
                raise UsageError(f"partition of {name} must be one of {known}, got {entry['partition']!r}")
            planned.append((name, LayerPlan(Partition(entry["partition"]), entry["lowering"])))
        return cls(tuple(planned))
