"""The plan: for every layer how the model axis cuts it, how it is computed, and how many samples at a time."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from cambrian.sharding.errors import UsageError
from cambrian.sharding.layer import Network
from cambrian.sharding.mesh import MeshShape
from cambrian.sharding.partition import Partition, local_samples, refusal


@dataclasses.dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer's part of a plan.

    Consecutive layers with the same `micro_batch` run as one loop over chunks of their samples. The loop ends where the
    micro-batch changes or, unless it is 0, the number of a device's samples does: there every copy of a live tensor is
    written out and read again in other chunks.

    Attributes:
      partition: how the model axis cuts the layer.
      lowering: names a function of the models package.
      micro_batch: number of samples that a device computes at a time; 0 for all its local samples at once.
    """

    partition: Partition
    lowering: str
    micro_batch: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class LayerCost:
    """The predicted cost of one layer in a launch, on one device.

    Attributes:
      name: of the layer.
      compute_ms: of the layer, with its partition's own communication, and of rewriting the live tensors in other
        chunks before it.
      communication_ms: of the transitions of the tensors that it reads.
      weight_bytes: of its parameters on a device.
      communicated_bytes: that a device receives, at most: transitions, halo exchange and sum.
    """

    name: str
    compute_ms: float
    communication_ms: float
    weight_bytes: int
    communicated_bytes: int


def total_ms(costs: Iterable[LayerCost]) -> float:
    """Predicted milliseconds of a launch."""
    return sum(cost.compute_ms + cost.communication_ms for cost in costs)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """One `LayerPlan` for each layer of a network, in its order.

    Attributes:
      layers: (layer name, its plan) pairs.
      notes: where the plan deviates from what one would expect, such as layers left whole.
      costs: of its layers, as the planner predicted them; empty for a plan that no planner made.
    """

    layers: tuple[tuple[str, LayerPlan], ...]
    notes: tuple[str, ...] = ()
    costs: tuple[LayerCost, ...] = dataclasses.field(default=(), compare=False, repr=False)

    def __getitem__(self, name: str) -> LayerPlan:
        return dict(self.layers)[name]

    def check(self, network: Network, mesh: MeshShape, batch_size: int) -> None:
        """Checks that the plan is for this network and mesh.

        Raises:
          UsageError: if it has other layers, the mesh can't cut a layer as it says, or a micro-batch doesn't divide its
            layer's local samples.
        """
        names, planned = [layer.name for layer in network], [name for name, _ in self.layers]
        if planned != names:
            raise UsageError(f"the plan needs the layers {names}, got {planned}")
        mesh.check_batch_size(batch_size)
        for layer in network:
            layer_plan = self[layer.name]
            if reason := refusal(layer, layer_plan.partition, mesh, batch_size):
                raise UsageError(f"mesh {mesh}: {reason}")
            samples, micro_batch = local_samples(layer_plan.partition, mesh, batch_size), layer_plan.micro_batch
            if micro_batch < 0 or (micro_batch and samples % micro_batch):
                raise UsageError(
                    f"mesh {mesh}: {layer.name}: micro_batch must be 0 or divide the {samples} samples of a device, "
                    f"got {micro_batch}"
                )

    def intra_sample_flops_fraction(self, network: Network, mesh: MeshShape) -> float:
        """Share of the network's arithmetic that the model axis cuts within a sample, from 0 to 1."""
        if mesh.model == 1:
            return 0.0
        cut = sum(layer.flops for layer in network if self[layer.name].partition.intra_sample)
        return cut / sum(layer.flops for layer in network)

    def to_json(self) -> dict[str, dict[str, str | int]]:
        """Layer name → partition, lowering and micro_batch, in the network's order."""
        return {
            name: {"partition": str(p.partition), "lowering": p.lowering, "micro_batch": p.micro_batch}
            for name, p in self.layers
        }

    @classmethod
    def from_json(cls, layers: Mapping[str, Mapping[str, Any]]) -> "Plan":
        """The inverse of `to_json`.

        Raises:
          UsageError: if a partition is unknown, a micro-batch no number, or a layer's entry has other keys.
        """
        planned = []
        for name, entry in layers.items():
            if set(entry) != {"partition", "lowering", "micro_batch"}:
                raise UsageError(f"plan of {name} needs partition, lowering and micro_batch, got {sorted(entry)}")
            if entry["partition"] not in list(Partition):
                known = ", ".join(Partition)
                raise UsageError(f"partition of {name} must be one of {known}, got {entry['partition']!r}")
            if type(entry["micro_batch"]) is not int:
                raise UsageError(f"micro_batch of {name} must be a whole number, got {entry['micro_batch']!r}")
            planned.append((name, LayerPlan(Partition(entry["partition"]), entry["lowering"], entry["micro_batch"])))
        return cls(tuple(planned))
