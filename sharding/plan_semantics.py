"""What a plan means: where loops over samples begin, which layouts of a tensor are live, how large a halo is.

The planner prices these rules and the executor follows them, so they stand here once.
"""

import itertools
from collections.abc import Iterator, Sequence

from cambrian.sharding.layer import Kind, LayerSpec, Network
from cambrian.sharding.partition import Layout, Partition, layouts
from cambrian.sharding.plan import LayerPlan, Plan

# The layouts in which a tensor exists: the one that it was made in, then the others in order.
LiveLayouts = tuple[Layout, ...]


def loop_continues(micro_batch_before: int, micro_batch: int, samples_change: bool) -> bool:
    """Whether a layer runs in the loop over chunks of samples that the layer before it runs in.

    Otherwise every live tensor is written out between them and read again in other chunks.

    Args:
      samples_change: whether a device has another number of samples, because one of the two is cut by samples.
    """
    return micro_batch_before == micro_batch and (micro_batch == 0 or not samples_change)


def share_loop(before: LayerPlan, after: LayerPlan) -> bool:
    """Whether two consecutive layers run in one loop."""
    samples_change = (before.partition == Partition.SAMPLES) != (after.partition == Partition.SAMPLES)
    return loop_continues(before.micro_batch, after.micro_batch, samples_change)


def loops(network: Network, plan: Plan) -> list[list[LayerSpec]]:
    """The layers, grouped into runs that one loop computes."""
    groups = [[network[0]]]
    for before, layer in itertools.pairwise(network):
        if share_loop(plan[before.name], plan[layer.name]):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def halo_rows(layer: LayerSpec) -> tuple[int, int]:
    """Rows above and below its own part that a device needs to compute its rows of `layer`."""
    if layer.kind == Kind.MEAN_POOL:
        return 0, 0
    return layer.padding, max(0, layer.kernel - layer.padding - layer.stride)


def last_readers(network: Network) -> dict[str | None, int]:
    """Tensor (None: the images) → index of the last layer that reads it; tensors that no layer reads are left out."""
    last: dict[str | None, int] = {}
    for index, layer in enumerate(network):
        last[layer.input] = index
        if layer.residual is not None:
            last[layer.residual] = index
    return last


def tensor_shapes(network: Network) -> dict[str | None, tuple[int, int, int]]:
    """Tensor (None: the images) → its shape (H, W, C)."""
    return {None: network[0].in_shape, **{layer.name: layer.out_shape for layer in network}}


def images_layout(first: LayerSpec, partition: Partition) -> Layout:
    """The layout in which the network's first layer receives the images."""
    reads = layouts(first, partition)[0]
    return Layout.WHOLE if reads == Layout.CHANNELS else reads


def reads(layer: LayerSpec, partition: Partition) -> list[tuple[str | None, Layout]]:
    """The tensors that a layer reads, each with the layout that it is read in: its input, then the residual."""
    read, made = layouts(layer, partition)
    return [(layer.input, read)] + ([] if layer.residual is None else [(layer.residual, made)])


def transition_source(live: Sequence[Layout]) -> Layout:
    """The live layout that another one is made from: a slice of the whole tensor where it exists, else the first."""
    return Layout.WHOLE if Layout.WHOLE in live else live[0]


def compute_layer(
    live: dict[str | None, LiveLayouts], layer: LayerSpec, partition: Partition
) -> Iterator[tuple[str | None, Layout, Layout]]:
    """Brings `live` from before to after `layer`, and yields each transition: tensor, source and target layout.

    A layout made for one reader is kept for the next.
    """
    for name, layout in reads(layer, partition):
        found = live[name]
        if layout not in found:
            yield name, transition_source(found), layout
            live[name] = (found[0], *sorted((*found[1:], layout)))
    live[layer.name] = (layouts(layer, partition)[1],)
