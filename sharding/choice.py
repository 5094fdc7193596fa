"""The built-in rule that chooses each layer's partition from shapes alone."""

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
      partition: `samples`, `rows` or `channels` cut every convolution that way. `intra_sample` cuts the larger of the
        two, rows of the activations or channels of the weights, the other where that doesn't divide, and leaves a layer
        whole where neither does. `auto` takes samples where the batch divides, because they need no communication, else
        chooses as `intra_sample`.

    Returns:
      The partition of each layer, and notes on convolutions that stay whole.

    Raises:
      UsageError: naming layer, dimension and axis, if the mesh can't cut a convolution the way asked for, or
        `intra_sample` cuts none.
    """
    if partition not in PARTITIONS:
        raise UsageError(f"partition must be one of {', '.join(PARTITIONS)}, got {partition!r}")
    mesh.check_batch_size(batch_size)
    if mesh.model == 1 and partition != "intra_sample":  # nothing to cut
        return {layer.name: Partition.WHOLE for layer in network}, []
    if partition == "auto" and refusal(network[0], Partition.SAMPLES, mesh, batch_size) is None:
        partition = "samples"
    sizes_cut_by_rows = _sizes_cut_by_rows(network, batch_size // mesh.data)
    chosen: dict[str, Partition] = {}
    layout_of: dict[str | None, Layout] = {None: Layout.WHOLE}
    left_whole = []
    for layer in network:
        by_channels = _channel_partitions(layer, layout_of[layer.input])
        if partition == "samples":
            candidates = [Partition.SAMPLES]
        elif partition == "rows":
            candidates = [Partition.ROWS]
        elif partition == "channels":
            candidates = by_channels
        else:
            by_rows_first = (
                layer.out_shape[:2] in sizes_cut_by_rows if layer.has_weights else layout_of[layer.input] == Layout.ROWS
            )
            candidates = [Partition.ROWS, *by_channels] if by_rows_first else [*by_channels, Partition.ROWS]
        refusals = [refusal(layer, candidate, mesh, batch_size) for candidate in candidates]
        legal = [candidate for candidate, reason in zip(candidates, refusals, strict=True) if reason is None]
        if not legal and layer.kind == Kind.CONV:
            if partition in ("samples", "rows", "channels"):
                raise UsageError(f"mesh {mesh}: {refusals[0]}")
            left_whole.append(layer.name)
        chosen[layer.name] = legal[0] if legal else Partition.WHOLE
        layout_of[layer.name] = layouts(layer, chosen[layer.name])[1]
    return chosen, _check_cuts(network, mesh, partition, left_whole)


def _sizes_cut_by_rows(network: Network, samples: int) -> set[tuple[int, int]]:
    """The output sizes (H, W) at which a group's `samples` have more activations to move than the layers have weights.

    Cut by rows, every device reads all weights; cut by channels, every device handles most of the activations. Layers
    of one size are decided together, because each change between the two is an all-to-all.
    """
    moved: dict[tuple[int, int], int] = {}
    for layer in network:
        if layer.kind == Kind.CONV:
            size = layer.out_shape[:2]
            activations = samples * (_elements(layer.in_shape) + _elements(layer.out_shape))
            weights = layer.kernel**2 * layer.in_shape[2] * layer.out_shape[2]
            moved[size] = moved.get(size, 0) + activations - weights
    return {size for size, excess in moved.items() if excess >= 0}


def _channel_partitions(layer: LayerSpec, input_layout: Layout) -> list[Partition]:
    """Output channels, then input channels; the other way round where that communicates less.

    A sum moves every output element twice (reduce-scatter, then all-gather), a gather every input element once.
    """
    if not layer.has_weights:
        return [Partition.CHANNELS]
    if input_layout == Layout.CHANNELS and 2 * _elements(layer.out_shape) < _elements(layer.in_shape):
        return [Partition.INPUT_CHANNELS, Partition.CHANNELS]
    return [Partition.CHANNELS, Partition.INPUT_CHANNELS]


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
        f"the model axis of {mesh.model} divides neither rows nor channels of "
        f"{len(left_whole)} of {num_convolutions} convolutions: left whole ({', '.join(left_whole[:3])}"
        f"{', …' if len(left_whole) > 3 else ''})"
    ]
