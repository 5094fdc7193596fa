"""The plan of a network on this platform: partitions by the built-in rule, lowerings by layer."""

from models.lowerings import LOWERINGS
from sharding import (
    Kind,
    LayerPlan,
    LayerSpec,
    MeshShape,
    Network,
    Plan,
    UsageError,
    choose_partitions,
)


def make_plan(network: Network, mesh: MeshShape, batch_size: int, platform: str, partition: str = "auto") -> Plan:
    """Chooses partition and lowering of every layer.

    Args:
      batch_size: global number of samples of a launch.
      platform: cpu, gpu or tpu.
      partition: what `sharding.choose_partitions` takes.

    Raises:
      UsageError: as `sharding.choose_partitions`.
    """
    partitions, notes = choose_partitions(network, mesh, batch_size, partition)
    layers = tuple(
        (layer.name, LayerPlan(partitions[layer.name], default_lowering(layer, platform))) for layer in network
    )
    return Plan(layers, tuple(notes))


def default_lowering(layer: LayerSpec, platform: str) -> str:
    """The lowering of a layer where nothing was measured.

    GPUs and TPUs have fast native convolutions. XLA:CPU's are no faster than its matrix products, and far slower where
    a kernel is as large as its input.
    """
    if layer.kind == Kind.DENSE:
        return "matmul"
    if layer.kind != Kind.CONV:
        return "native"
    if platform != "cpu":
        return "native"
    return "matmul" if layer.kernel == 1 else "im2col"


def check_lowerings(network: Network, plan: Plan) -> None:
    """Raises UsageError naming the layer if a lowering of `plan` is unknown or doesn't compute its layer."""
    for layer in network:
        lowering = plan[layer.name].lowering
        if lowering not in LOWERINGS:
            raise UsageError(f"lowering of {layer.name} must be one of {', '.join(LOWERINGS)}, got {lowering!r}")
        if layer.kind == Kind.CONV and not LOWERINGS[lowering].supports(layer.kernel, layer.stride):
            raise UsageError(
                f"lowering {lowering} of {layer.name} doesn't compute a {layer.kernel}×{layer.kernel} convolution "
                f"with stride {layer.stride}"
            )
