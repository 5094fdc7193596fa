"""The predicted cost of a plan, layer by layer."""

from cambrian.sharding.errors import UsageError
from cambrian.sharding.layer import Kind, LayerSpec, Network
from cambrian.sharding.mesh import MeshShape
from cambrian.sharding.partition import Layout, Partition
from cambrian.sharding.plan import LayerCost, LayerPlan, Plan
from cambrian.sharding.plan_semantics import (
    LiveLayouts,
    compute_layer,
    halo_rows,
    images_layout,
    last_readers,
    share_loop,
    tensor_shapes,
)
from cambrian.sharding.planner.costs import Costs, Option

_SUM_BYTES = 4  # partial results are summed in float32


def plan_costs(
    plan: Plan, network: Network, mesh: MeshShape, costs: Costs, *, batch_size: int, element_bytes: int
) -> tuple[LayerCost, ...]:
    """Predicts the cost of each layer in a launch of `plan`; `choose_plan` minimises the sum of all milliseconds.

    Args:
      plan: plan of `network`.
      network: layers in the order of computation.
      mesh: sizes of the mesh axes.
      costs: costs on this mesh, with this batch size.
      batch_size: global number of samples per launch.
      element_bytes: bytes of an element of the activations, 4 for float32.

    Raises:
      UsageError: if the plan doesn't fit network, mesh and batch size, or `costs` lacks an option of the plan.
    """
    plan.check(network, mesh, batch_size)
    shapes, last = tensor_shapes(network), last_readers(network)
    planned = dict(plan.layers)
    samples = batch_size // mesh.data  # per group
    tensors: dict[str | None, LiveLayouts] = {None: (images_layout(network[0], planned[network[0].name].partition),)}
    layer_costs, before = [], None
    for index, layer in enumerate(network):
        layer_plan = planned[layer.name]
        option = _option(layer, layer_plan, costs)
        tensors = {name: live for name, live in tensors.items() if last.get(name, -1) >= index}
        compute_ms = option.milliseconds
        if before is not None and not share_loop(before, layer_plan):
            compute_ms += sum(costs.rechunk_ms(shapes[n], layout) for n, found in tensors.items() for layout in found)
        communication_ms, received = 0.0, _received_within(layer, layer_plan.partition, mesh.model, element_bytes)
        for name, source, target in compute_layer(tensors, layer, layer_plan.partition):
            communication_ms += costs.transition_ms(shapes[name], source, target)
            received += _received_by_transition(shapes[name], source, target, mesh.model) * element_bytes
        communicated_bytes = round(samples * received)
        layer_costs.append(LayerCost(layer.name, compute_ms, communication_ms, option.weight_bytes, communicated_bytes))
        before = layer_plan
    return tuple(layer_costs)


def _option(layer: LayerSpec, plan: LayerPlan, costs: Costs) -> Option:
    options = [
        option
        for option in costs.layer(layer, plan.partition)
        if (option.lowering, option.micro_batch) == (plan.lowering, plan.micro_batch)
    ]
    if not options:
        raise UsageError(
            f"{layer.name}: expected the cost of partition {plan.partition}, lowering {plan.lowering}, "
            f"micro_batch {plan.micro_batch}, got none"
        )
    return min(options, key=lambda option: option.milliseconds)


def _received_by_transition(shape: tuple[int, int, int], source: Layout, target: Layout, model: int) -> float:
    """Elements per sample that a device receives."""
    others = shape[0] * shape[1] * shape[2] * (model - 1) / model
    if source == Layout.WHOLE:
        return 0.0
    return others if target == Layout.WHOLE else others / model


def _received_within(layer: LayerSpec, partition: Partition, model: int, element_bytes: int) -> float:
    """Bytes per sample that a device receives inside a layer, by halo exchange or sum.

    A sum is a reduce-scatter and an all-gather; each moves all but the device's own shard.
    """
    sums = 2 * layer.out_shape[0] * layer.out_shape[1] * layer.out_shape[2] * (model - 1) / model * _SUM_BYTES
    if partition == Partition.INPUT_CHANNELS:
        return sums
    if partition != Partition.ROWS:
        return 0.0
    if layer.kind == Kind.MEAN_POOL:
        return sums
    rows, columns, channels = layer.in_shape
    (above, below), local = halo_rows(layer), rows // model
    halo = max(min(above, d * local) + min(below, rows - (d + 1) * local) for d in range(model))
    return halo * columns * channels * element_bytes
