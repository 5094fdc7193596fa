"""How the model axis cuts a layer, which layers it can cut, and the layouts of the tensors around them."""

import enum

from cambrian.sharding.layer import Kind, LayerSpec
from cambrian.sharding.mesh import MeshShape


class Layout(enum.StrEnum):
    """How an activation (N, H, W, C) is laid out over the model axis; the data axis always cuts N."""

    WHOLE = "whole"  # replicated over the devices of a group
    SAMPLES = "samples"  # N is cut
    ROWS = "rows"  # H is cut
    CHANNELS = "channels"  # C is cut


class Partition(enum.StrEnum):
    """How the model axis cuts the computation of one layer."""

    WHOLE = "whole"  # not cut: every device of a group computes the same
    SAMPLES = "samples"  # by samples, as the data axis does
    ROWS = "rows"  # by rows of the image, with a halo exchange before each window
    CHANNELS = "channels"  # by output channels (column-parallel), or by channel groups
    INPUT_CHANNELS = "input_channels"  # by input channels, with a sum at the end (row-parallel)

    @property
    def intra_sample(self) -> bool:
        """Whether the partition cuts the computation of a single sample."""
        return self not in (Partition.WHOLE, Partition.SAMPLES)


def layouts(layer: LayerSpec, partition: Partition) -> tuple[Layout, Layout]:
    """Returns the layouts of the input and of the output of `layer` under `partition`."""
    match partition:
        case Partition.CHANNELS if layer.has_weights and layer.groups == 1:
            return Layout.WHOLE, Layout.CHANNELS
        case Partition.INPUT_CHANNELS:
            return Layout.CHANNELS, Layout.WHOLE
        case Partition.ROWS if layer.kind == Kind.MEAN_POOL:
            return Layout.ROWS, Layout.WHOLE
        case _:
            return Layout(partition), Layout(partition)


def local_samples(partition: Partition, mesh: MeshShape, batch_size: int) -> int:
    """Returns the number of samples that one device computes in a layer cut by `partition`.

    Args:
      batch_size: global number of samples per launch.
    """
    return batch_size // (mesh.num_devices if partition == Partition.SAMPLES else mesh.data)


def refusal(layer: LayerSpec, partition: Partition, mesh: MeshShape, batch_size: int) -> str | None:
    """Returns why `mesh` can't cut `layer` by `partition`, naming layer, dimension and axis; None if it can.

    Args:
      batch_size: global number of samples per launch.
    """
    model = mesh.model

    def indivisible(what: str, size: int) -> str | None:
        if size % model == 0:
            return None
        return f"{layer.name}: {what} must be divisible by the model axis of {model} for {partition}, got {size}"

    match partition:
        case Partition.WHOLE:
            return None
        case Partition.SAMPLES:
            return indivisible(f"{batch_size} samples over a data axis of {mesh.data}", batch_size // mesh.data)
        case Partition.CHANNELS:
            if layer.groups > 1:
                return indivisible("channel groups", layer.groups)
            return indivisible("output channels", layer.out_shape[2])
        case Partition.INPUT_CHANNELS:
            if not layer.has_weights:
                return f"{layer.name}: {partition} must be of a layer with weights, got {layer.kind}"
            if layer.groups > 1:
                return f"{layer.name}: {partition} must be of a layer without channel groups, got {layer.groups}"
            return indivisible("input channels", layer.in_shape[2])
        case Partition.ROWS:
            in_rows, out_rows = layer.in_shape[0], layer.out_shape[0]
            if layer.kind == Kind.DENSE:
                return f"{layer.name}: {partition} must be of a layer on images, got {layer.kind}"
            if layer.kind == Kind.MEAN_POOL:
                return indivisible("input rows", in_rows)
            if in_rows != out_rows * layer.stride:
                return (
                    f"{layer.name}: input rows must equal output rows × stride for {partition}, "
                    f"got {in_rows} and {out_rows} × {layer.stride}"
                )
            return indivisible("output rows", out_rows)
