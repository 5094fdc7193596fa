"""The meaning of a plan: where loops over samples begin, which layouts of a tensor are live, how large halos are.

The planner prices these rules; the execution of the plan follows them.
"""

import itertools
from collections.abc import Iterator, Sequence

from cambrian.sharding.layer import Kind, LayerSpec, Network
from cambrian.sharding.partition import Layout, Partition, layouts
from cambrian.sharding.plan import LayerPlan, Plan

# The layouts in which a tensor exists: first the one that it was computed in, then the others, sorted.
LiveLayouts = tuple[Layout, ...]


def loop_continues(micro_batch_before: int, micro_batch: int, samples_change: bool) -> bool:
    """Whether a layer runs in the same loop over chunks of samples as the layer before it.

    If it doesn't, every live tensor is written out between the two and read again in other chunks.

    Args:
      micro_batch_before: micro-batch of the layer before.
      micro_batch: micro-batch of the layer.
      samples_change: whether the number of samples per device changes, because just one of the two is cut by samples.
    """
    return micro_batch_before == micro_batch and (micro_batch == 0 or not samples_change)


def share_loop(before: LayerPlan, after: LayerPlan) -> bool:
    """Whether two consecutive layers run in the same loop."""
    samples_change = (before.partition == Partition.SAMPLES) != (after.partition == Partition.SAMPLES)
    return loop_continues(before.micro_batch, after.micro_batch, samples_change)


def loops(network: Network, plan: Plan) -> list[list[LayerSpec]]:
    """Groups consecutive layers that run in the same loop."""
    groups = [[network[0]]]
    for before, layer in itertools.pairwise(network):
        if share_loop(plan[before.name], plan[layer.name]):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def halo_rows(layer: LayerSpec) -> tuple[int, int]:
    """Returns the number of rows above and below its shard that a device reads to compute its rows of `layer`."""
    if layer.kind == Kind.MEAN_POOL:
        return 0, 0
    above = layer.padding[0]
    return above, max(0, layer.kernel - above - layer.stride)


def last_readers(network: Network) -> dict[str | None, int]:
    """Returns tensor (None: the images) → index of the last layer that reads it, without tensors that aren't read."""
    last: dict[str | None, int] = {}
    for index, layer in enumerate(network):
        last[layer.input] = index
        if layer.residual is not None:
            last[layer.residual] = index
    return last


def tensor_shapes(network: Network) -> dict[str | None, tuple[int, int, int]]:
    """Returns tensor (None: the images) → shape (H, W, C)."""
    return {None: network[0].in_shape, **{layer.name: layer.out_shape for layer in network}}


def images_layout(first: LayerSpec, partition: Partition) -> Layout:
    """Returns the layout in which the network receives the images."""
    reads = layouts(first, partition)[0]
    return Layout.WHOLE if reads == Layout.CHANNELS else reads


def reads(layer: LayerSpec, partition: Partition) -> list[tuple[str | None, Layout]]:
    """Returns the tensors that a layer reads, input before residual, each with its layout."""
    read, made = layouts(layer, partition)
    return [(layer.input, read)] + ([] if layer.residual is None else [(layer.residual, made)])


def transition_source(live: Sequence[Layout]) -> Layout:
    """Returns the live layout that a transition starts from: whole, if live, as slicing is local; else the first."""
    return Layout.WHOLE if Layout.WHOLE in live else live[0]


def compute_layer(
    live: dict[str | None, LiveLayouts], layer: LayerSpec, partition: Partition
) -> Iterator[tuple[str | None, Layout, Layout]]:
    """Updates `live` for the computation of `layer` and yields each transition: tensor, source and target layout.

    A layout made for one reader stays live for the next.
    """
    for name, layout in reads(layer, partition):
        found = live[name]
        if layout not in found:
            yield name, transition_source(found), layout
            live[name] = (found[0], *sorted((*found[1:], layout)))
    live[layer.name] = (layouts(layer, partition)[1],)
