"""The built-in rule that chooses each layer's partition from shapes alone."""

from collections.abc import Sequence

from sharding.errors import UsageError
from sharding.layer import Kind, LayerSpec, Network
from sharding.mesh import MeshShape
from sharding.partition import Layout, Partition, layouts, refusal

PARTITIONS = ("auto", "samples", "rows", "channels", "intra_sample")


def choose_partitions(
    network: Network, mesh: MeshShape, batch_size: int, partition: str = "auto"
) -> tuple[dict[str, Partition], list[str]]:
    """Chooses how the model axis cuts each layer.

    Args:
      batch_size: global number of samples of a launch, a multiple of the data axis.
      partition: `samples`, `rows` or `channels` cut every convolution that way; `intra_sample` takes rows where they
        divide, else channels, and leaves a layer whole where neither does; `auto` takes samples where the batch
        divides, else chooses as `intra_sample`.

    Returns:
      The partition of each layer, and notes on convolutions that stay whole.

    Raises:
      UsageError: naming layer, dimension and axis, if the mesh can't cut a convolution the way asked for, or
        `intra_sample` cuts none.
    """
    if partition not in PARTITIONS:
        raise UsageError(f"partition must be one of {', '.join(PARTITIONS)}, got {partition!r}")
    if batch_size < 1 or batch_size % mesh.data:
        raise UsageError(
            f"the batch size must be a multiple of the data axis of {mesh.data} in mesh {mesh}, got {batch_size}"
        )
    if mesh.model == 1 and partition == "auto":
        return {layer.name: Partition.WHOLE for layer in network}, []
    preferences = _preferences(network, mesh, batch_size, partition)
    chosen: dict[str, Partition] = {}
    layout_of: dict[str | None, Layout] = {None: Layout.WHOLE}
    left_whole = []
    for layer in network:
        refusals = []
        for candidate in preferences:
            if candidate == Partition.CHANNELS:
                candidate = _channel_partition(layer, layout_of[layer.input])
            reason = refusal(layer, candidate, mesh, batch_size)
            if reason is None:
                break
            refusals.append(reason)
        else:
            if layer.kind == Kind.CONV:
                if partition not in ("auto", "intra_sample"):
                    raise UsageError(f"mesh {mesh}: {refusals[0]}")
                left_whole.append(layer.name)
            candidate = Partition.WHOLE
        chosen[layer.name] = candidate
        layout_of[layer.name] = layouts(layer, candidate)[1]
    return chosen, _check_cuts(network, mesh, partition, left_whole)


def _preferences(network: Network, mesh: MeshShape, batch_size: int, partition: str) -> Sequence[Partition]:
    intra_sample = (Partition.ROWS, Partition.CHANNELS)
    if partition == "intra_sample":
        return intra_sample
    if partition == "auto":
        divides = refusal(network[0], Partition.SAMPLES, mesh, batch_size) is None
        return (Partition.SAMPLES,) if divides else intra_sample
    return (Partition(partition),)


def _channel_partition(layer: LayerSpec, input_layout: Layout) -> Partition:
    """Output channels, unless summing the output costs less than gathering the input.

    A sum moves every output element twice (reduce-scatter, then all-gather), a gather every input element once.
    """
    sums = layer.has_weights and input_layout == Layout.CHANNELS
    if sums and 2 * _elements(layer.out_shape) < _elements(layer.in_shape):
        return Partition.INPUT_CHANNELS
    return Partition.CHANNELS


def _elements(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]


def _check_cuts(network: Network, mesh: MeshShape, partition: str, left_whole: list[str]) -> list[str]:
    num_convolutions = sum(layer.kind == Kind.CONV for layer in network)
    if partition == "intra_sample" and (mesh.model == 1 or len(left_whole) == num_convolutions):
        raise UsageError(
            f"partition intra_sample needs a model axis that divides the rows or channels of some convolution, "
            f"got mesh {mesh}"
        )
    if not left_whole:
        return []
    return [
        f"the model axis of {mesh.model} divides neither samples, rows nor channels of "
        f"{len(left_whole)} of {num_convolutions} convolutions: left whole ({', '.join(left_whole[:3])}"
        f"{', …' if len(left_whole) > 3 else ''})"
    ]
