"""The plan: how the model axis cuts each layer, how the layer is computed, and on how many samples at a time."""

import dataclasses
from collections.abc import Iterable

from cambrian.sharding.errors import UsageError
from cambrian.sharding.layer import Network
from cambrian.sharding.mesh import MeshShape
from cambrian.sharding.partition import Partition, local_samples, refusal


@dataclasses.dataclass(frozen=True, slots=True)
class LayerPlan:
    """The plan of one layer.

    Consecutive layers with the same `micro_batch` run in one loop over chunks of their samples. The loop ends where the
    micro-batch changes or, unless it is 0, the number of samples per device changes. There every copy of a live tensor
    is written out and read again in other chunks.

    Attributes:
      partition: how the model axis cuts the layer.
      lowering: name of a lowering in the models package.
      micro_batch: number of samples that a device computes at a time; 0 for all local samples at once.
      precision: dtype of the layer's operands, float32, bfloat16 or int8.
    """

    partition: Partition
    lowering: str
    micro_batch: int = 0
    precision: str = "float32"


@dataclasses.dataclass(frozen=True, slots=True)
class LayerCost:
    """The predicted cost of one layer per launch and device.

    Attributes:
      name: name of the layer.
      compute_ms: time of the layer, with its halo exchange or sum, and of rewriting live tensors in other chunks first.
      communication_ms: time of the transitions of the tensors that the layer reads.
      weight_bytes: size of the layer's parameters.
      communicated_bytes: most bytes that a device receives by transitions, halo exchange and sum.
    """

    name: str
    compute_ms: float
    communication_ms: float
    weight_bytes: int
    communicated_bytes: int


def total_ms(costs: Iterable[LayerCost]) -> float:
    """Returns the predicted milliseconds of a launch."""
    return sum(cost.compute_ms + cost.communication_ms for cost in costs)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A `LayerPlan` for each layer of a network, in the network's order.

    Attributes:
      layers: (layer name, layer plan) pairs.
      notes: human-readable deviations from the request, such as layers left whole.
      costs: the planner's predicted cost of each layer; empty for a plan made without the planner.
    """

    layers: tuple[tuple[str, LayerPlan], ...]
    notes: tuple[str, ...] = ()
    costs: tuple[LayerCost, ...] = dataclasses.field(default=(), compare=False, repr=False)

    def __getitem__(self, name: str) -> LayerPlan:
        return dict(self.layers)[name]

    def check(self, network: Network, mesh: MeshShape, batch_size: int) -> None:
        """Checks that the plan fits this network, mesh and batch size.

        Raises:
          UsageError: if the plan has other layers, the mesh can't cut a layer as planned, or a micro-batch doesn't
            divide the local samples of its layer.
        """
        names, planned = [layer.name for layer in network], [name for name, _ in self.layers]
        if planned != names:
            raise UsageError(f"expected a plan of the layers {names}, got {planned}")
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
        """Returns the fraction of the network's arithmetic, 0 to 1, that the model axis cuts within a sample."""
        if mesh.model == 1:
            return 0.0
        cut = sum(layer.flops for layer in network if self[layer.name].partition.intra_sample)
        return cut / max(sum(layer.flops for layer in network), 1)  # pools alone have none

    def to_json(self) -> dict[str, dict[str, str | int]]:
        """Returns layer name → the fields of its plan, in the network's order."""
        return {name: {**dataclasses.asdict(plan), "partition": str(plan.partition)} for name, plan in self.layers}
