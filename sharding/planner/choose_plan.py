"""Chooses how each layer is cut, how it is computed, and on how many samples at a time."""

import dataclasses

from cambrian.sharding.layer import Network
from cambrian.sharding.mesh import MeshShape
from cambrian.sharding.plan import LayerPlan, Plan
from cambrian.sharding.planner.allowed_partitions import allowed_partitions
from cambrian.sharding.planner.costs import Costs
from cambrian.sharding.planner.memory_limit import fastest_within, memory_bytes
from cambrian.sharding.planner.plan_costs import plan_costs
from cambrian.sharding.planner.trellis import Trellis


def choose_plan(
    network: Network,
    mesh: MeshShape,
    batch_size: int,
    costs: Costs,
    *,
    partition: str = "auto",
    memory_limit_bytes: int | None = None,
    element_bytes: int = 4,
) -> Plan:
    """Chooses the plan of `network` with the lowest total cost, including transitions and changes of the micro-batch.

    The choice is deterministic.

    Args:
      network: layers to plan.
      mesh: sizes of the mesh axes.
      batch_size: global number of samples per launch, a multiple of the data axis.
      costs: costs of layers and data movement on this mesh, with this batch size.
      partition: restriction of the partitions, see `allowed_partitions`.
      memory_limit_bytes: memory of a device for all weights and the largest working memory of a layer. If the limit
        binds, the plan of a large network may be slightly slower than the fastest one that fits.
      element_bytes: bytes of an element of the activations.

    Returns:
      The plan, with the predicted cost of each layer and notes on convolutions that stay whole.

    Raises:
      UsageError: if the mesh can't cut a convolution as requested (names layer, dimension and axis), `intra_sample`
        cuts none, or `costs` has no option for a layer.
      OutOfMemory: if no plan fits the limit.
    """
    allowed, notes = allowed_partitions(network, mesh, batch_size, partition)
    trellis = Trellis(network, allowed, mesh, batch_size, costs)
    _, choices = trellis.shortest()
    if memory_limit_bytes is not None and memory_bytes(choices) > memory_limit_bytes:
        choices = fastest_within(trellis, memory_limit_bytes)
    layers = tuple(
        (layer.name, LayerPlan(cut, option.lowering, option.micro_batch, option.precision))
        for layer, (cut, option) in zip(network, choices, strict=True)
    )
    plan = Plan(layers, notes)
    costs_of_layers = plan_costs(plan, network, mesh, costs, batch_size=batch_size, element_bytes=element_bytes)
    return dataclasses.replace(plan, costs=costs_of_layers)
