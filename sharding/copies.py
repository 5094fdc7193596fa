"""In which layouts the tensors of a network exist while it is computed, and what a reader makes of them."""

from collections.abc import Iterator

from sharding.layer import LayerSpec, Network
from sharding.partition import Layout, Partition, layouts

# The layouts in which a tensor exists: first the one it was made in, the others in order.
Copies = tuple[Layout, ...]


def last_readers(network: Network) -> dict[str | None, int]:
    """Index of the last layer that reads each tensor, by its name (None: the images); unread ones are left out."""
    last: dict[str | None, int] = {}
    for index, layer in enumerate(network):
        last[layer.input] = index
        if layer.residual is not None:
            last[layer.residual] = index
    return last


def tensor_shapes(network: Network) -> dict[str | None, tuple[int, int, int]]:
    """(H, W, C) of each tensor, by its name; None: the images."""
    return {None: network[0].in_shape, **{layer.name: layer.out_shape for layer in network}}


def images_layout(first: LayerSpec, partition: Partition) -> Layout:
    """The layout in which the images are handed over to the network's first layer."""
    reads = layouts(first, partition)[0]
    return Layout.WHOLE if reads == Layout.CHANNELS else reads


def compute_layer(
    tensors: dict[str | None, Copies], layer: LayerSpec, partition: Partition
) -> Iterator[tuple[str | None, Layout, Layout]]:
    """Brings `tensors` from before to after `layer`, and yields each transition: tensor, source and target layout.

    A copy in a layout is kept, so that two readers share its transition. Where a whole copy exists, others are slices
    of that; else they are made of the layout the tensor was made in.
    """
    reads, makes = layouts(layer, partition)
    wanted = [(layer.input, reads)]
    if layer.residual is not None:
        wanted.append((layer.residual, makes))
    for name, layout in wanted:
        copies = tensors[name]
        if layout not in copies:
            yield name, Layout.WHOLE if Layout.WHOLE in copies else copies[0], layout
            tensors[name] = (copies[0], *sorted((*copies[1:], layout)))
    tensors[layer.name] = (makes,)
