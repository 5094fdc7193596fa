"""The partitions that the mesh and the user's choice allow for each layer."""

from cambrian.sharding.errors import UsageError
from cambrian.sharding.layer import Kind, LayerSpec, Network
from cambrian.sharding.mesh import MeshShape
from cambrian.sharding.partition import Partition, refusal

PARTITIONS = ("auto", "samples", "rows", "channels", "intra_sample")

_CONVOLUTION_PARTITIONS = {
    "samples": (Partition.SAMPLES,),
    "rows": (Partition.ROWS,),
    "channels": (Partition.CHANNELS, Partition.INPUT_CHANNELS),
}


def allowed_partitions(
    network: Network, mesh: MeshShape, batch_size: int, partition: str = "auto"
) -> tuple[list[tuple[Partition, ...]], tuple[str, ...]]:
    """Returns the partitions allowed for each layer.

    Args:
      network: layers to partition.
      mesh: sizes of the mesh axes.
      batch_size: global number of samples per launch, a multiple of the data axis.
      partition: `auto` allows every partition that the mesh divides. `samples`, `rows` or `channels` restrict
        convolutions to it, and leave pools and dense layers free. `intra_sample` excludes samples, and allows whole
        only where nothing divides.

    Returns:
      The partitions of each layer in the network's order, and notes on convolutions that stay whole.

    Raises:
      UsageError: if the mesh can't cut a convolution as requested (names layer, dimension and axis), or `intra_sample`
        cuts none.
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
            f"the model axis must divide the rows or channels of a convolution for partition intra_sample, "
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
    requested = _CONVOLUTION_PARTITIONS[partition]
    if not (allowed := tuple(candidate for candidate in requested if candidate in legal)):
        raise UsageError(f"mesh {mesh}: {refusals[requested[0]]}")
    return allowed
