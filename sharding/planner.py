"""The planner: chooses how each layer is cut, how it is computed and how many samples at a time."""

from sharding.choice import allowed_partitions
from sharding.costs import Costs
from sharding.layer import Network
from sharding.memory_limit import fastest_within, memory_bytes
from sharding.mesh import MeshShape
from sharding.plan import LayerPlan, Plan
from sharding.trellis import Trellis


def choose_plan(
    network: Network,
    mesh: MeshShape,
    batch_size: int,
    costs: Costs,
    *,
    partition: str = "auto",
    memory_limit_bytes: int | None = None,
) -> Plan:
    """Chooses the fastest plan of `network`, as `costs` have it, transitions and changes of the chunks counted.

    Args:
      batch_size: global number of samples of a launch, a multiple of the data axis.
      costs: of the layers and of the movements around them on this mesh, with this batch size.
      partition: `auto` is free to take whatever the mesh can do. `samples`, `rows` or `channels` cut every convolution
        that way and leave pools and dense layers free. `intra_sample` cuts every layer within a sample, and leaves it
        whole only where nothing divides.
      memory_limit_bytes: of a device, for all weights and the most that a layer works with. Under a limit that binds,
        a large network's plan may be a little slower than the fastest that fits.

    Returns:
      The plan, with notes on convolutions that nothing divides. The same input gives the same plan.

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
    return Plan(layers, notes)
