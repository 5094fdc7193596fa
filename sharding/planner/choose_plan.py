"""The planner: chooses how each layer is cut, how it is computed and how many samples at a time."""

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
    """Chooses the plan of `network` that is fastest by `costs`, including transitions and changes of the chunks.

    Args:
      batch_size: global number of samples of a launch, a multiple of the data axis.
      costs: of the layers and of the movements around them on this mesh, with this batch size.
      partition: `auto` is free to take whatever the mesh can do. `samples`, `rows` or `channels` cut every convolution
        that way and leave pools and dense layers free. `intra_sample` cuts every layer within a sample, and leaves it
        whole only where nothing divides.
      memory_limit_bytes: of a device, for all weights and the most that a layer works with. Under a limit that binds,
        a large network's plan may be a little slower than the fastest that fits.
      element_bytes: of an element of the activations.

    Returns:
      The plan, with the cost of each layer and notes on convolutions that nothing divides. The same input gives the
      same plan.

    Raises:
      UsageError: naming layer, dimension and axis, if the mesh can't cut a convolution the way asked for, or
        `intra_sample` cuts none; or if `costs` have no option for a layer.
      OutOfMemory: if no plan fits the memory.
    """
    allowed, notes = allowed_partitions(network, mesh, batch_size, partition)
    trellis = Trellis(network, allowed, mesh, batch_size, costs)
    _, choices = trellis.shortest()
    if memory_limit_bytes is not None and memory_bytes(choices) > memory_limit_bytes:
        choices = fastest_within(trellis, memory_limit_bytes)
    layers = tuple(
        (layer.name, LayerPlan(cut, option.lowering, option.micro_batch))
        for layer, (cut, option) in zip(network, choices, strict=True)
    )
    plan = Plan(layers, notes)
    costs_of_layers = plan_costs(plan, network, mesh, costs, batch_size=batch_size, element_bytes=element_bytes)
    return dataclasses.replace(plan, costs=costs_of_layers)
