"""Which partitions a layer may have: those the mesh allows, restricted as asked for."""

from cambrian.sharding.errors import UsageError
from cambrian.sharding.layer import Kind, LayerSpec, Network
from cambrian.sharding.mesh import MeshShape
from cambrian.sharding.partition import Partition, refusal

PARTITIONS = ("auto", "samples", "rows", "channels", "intra_sample")

_OF_CONVOLUTIONS = {
    "samples": (Partition.SAMPLES,),
    "rows": (Partition.ROWS,),
    "channels": (Partition.CHANNELS, Partition.INPUT_CHANNELS),
}


def allowed_partitions(
    network: Network, mesh: MeshShape, batch_size: int, partition: str = "auto"
) -> tuple[list[tuple[Partition, ...]], tuple[str, ...]]:
    """The partitions that each layer may have.

    Args:
      batch_size: global number of samples of a launch, a multiple of the data axis.
      partition: `auto` allows whatever the mesh can do. `samples`, `rows` or `channels` cut every convolution that way
        and leave pools and dense layers free. `intra_sample` allows no samples, and whole only where nothing divides.

    Returns:
      The partitions of each layer in the network's order, and notes on convolutions that stay whole.

    Raises:
      UsageError: naming layer, dimension and axis, if the mesh can't cut a convolution the way asked for, or
        `intra_sample` cuts none.
    """
    if partition not in PARTITIONS:
        raise UsageError(f"partition must be one of {', '.join(PARTITIONS)}, got {partition!r}")
    mesh.check_batch_size(batch_size)
    if mesh.model == 1 and partition != "intra_sample":  # nothing to cut
        return [(Partition.WHOLE,)] * len(network), ()
    allowed = [_of_layer(layer, mesh, batch_size, partition) for layer in network]
    convolutions = [layer.name for layer in network if layer.kind == Kind.CONV]
    whole = [
        layer.name
        for layer, partitions in zip(network, allowed, strict=True)
        if layer.kind == Kind.CONV and partitions == (Partition.WHOLE,)
    ]
    if partition == "intra_sample" and (mesh.model == 1 or len(whole) == len(convolutions)):
        raise UsageError(
            f"partition intra_sample needs a model axis that divides the rows or channels of some convolution, "
            f"got mesh {mesh}"
        )
    if not whole:
        return allowed, ()
    note = (
        f"the model axis of {mesh.model} divides neither rows nor channels of "
        f"{len(whole)} of {len(convolutions)} convolutions: left whole ({', '.join(whole[:3])}"
        f"{', …' if len(whole) > 3 else ''})"
    )
    return allowed, (note,)


def _of_layer(layer: LayerSpec, mesh: MeshShape, batch_size: int, partition: str) -> tuple[Partition, ...]:
    refusals = {candidate: refusal(layer, candidate, mesh, batch_size) for candidate in Partition}
    legal = tuple(candidate for candidate, reason in refusals.items() if reason is None)
    if partition == "intra_sample":
        return tuple(candidate for candidate in legal if candidate.intra_sample) or (Partition.WHOLE,)
    if partition == "auto" or layer.kind != Kind.CONV:
        return legal
    wanted = _OF_CONVOLUTIONS[partition]
    if not (asked_for := tuple(candidate for candidate in wanted if candidate in legal)):
        raise UsageError(f"mesh {mesh}: {refusals[wanted[0]]}")
    return asked_for
