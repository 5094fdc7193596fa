"""How the model axis cuts a layer, and what that asks of the layer and of the layouts around it."""

import enum

from cambrian.sharding.layer import Kind, LayerSpec
from cambrian.sharding.mesh import MeshShape


class Layout(enum.StrEnum):
    """How an activation (N, H, W, C) lies on the model axis; the data axis always cuts N."""

    WHOLE = "whole"  # every device of the group holds all of it
    SAMPLES = "samples"  # N is cut
    ROWS = "rows"  # H is cut
    CHANNELS = "channels"  # C is cut


class Partition(enum.StrEnum):
    """How the model axis cuts the computation of one layer."""

    WHOLE = "whole"  # not cut: every device of the group computes the same
    SAMPLES = "samples"  # cut by samples, like the data axis
    ROWS = "rows"  # cut by rows of the image, with a halo exchange before each window
    CHANNELS = "channels"  # cut by output channels (column-parallel)
    INPUT_CHANNELS = "input_channels"  # cut by input channels, summed at the end (row-parallel)

    @property
    def intra_sample(self) -> bool:
        """Whether it cuts the computation of a single sample."""
        return self not in (Partition.WHOLE, Partition.SAMPLES)


def layouts(layer: LayerSpec, partition: Partition) -> tuple[Layout, Layout]:
    """The layout that `layer` reads under `partition`, and the one in which it leaves its output."""
    match partition:
        case Partition.CHANNELS if layer.has_weights:
            return Layout.WHOLE, Layout.CHANNELS
        case Partition.INPUT_CHANNELS:
            return Layout.CHANNELS, Layout.WHOLE
        case Partition.ROWS if layer.kind == Kind.MEAN_POOL:
            return Layout.ROWS, Layout.WHOLE
        case _:
            return Layout(partition), Layout(partition)


def local_samples(partition: Partition, mesh: MeshShape, batch_size: int) -> int:
    """Number of samples of a launch that one device computes in a layer cut by `partition`.

    Args:
      batch_size: global number of samples of a launch.
    """
    return batch_size // (mesh.num_devices if partition == Partition.SAMPLES else mesh.data)


def refusal(layer: LayerSpec, partition: Partition, mesh: MeshShape, batch_size: int) -> str | None:
    """Why `mesh` can't cut `layer` by `partition`, naming layer, dimension and axis; None if it can.

    Args:
      batch_size: global number of samples of a launch.
    """
    model = mesh.model

    def indivisible(what: str, size: int) -> str | None:
        if size % model == 0:
            return None
        return f"{layer.name}: {partition} needs {what} divisible by the model axis of {model}, got {size}"

    match partition:
        case Partition.WHOLE:
            return None
        case Partition.SAMPLES:
            return indivisible(f"the {batch_size} samples over a data axis of {mesh.data}", batch_size // mesh.data)
        case Partition.CHANNELS:
            return indivisible("its output channels", layer.out_shape[2])
        case Partition.INPUT_CHANNELS:
            if not layer.has_weights:
                return f"{layer.name}: {partition} needs a layer with weights, got {layer.kind}"
            return indivisible("its input channels", layer.in_shape[2])
        case Partition.ROWS:
            in_rows, out_rows = layer.in_shape[0], layer.out_shape[0]
            if layer.kind == Kind.DENSE:
                return f"{layer.name}: {partition} needs a layer over an image, got {layer.kind}"
            if layer.kind == Kind.MEAN_POOL:
                return indivisible("its input rows", in_rows)
            if in_rows != out_rows * layer.stride:
                return (
                    f"{layer.name}: {partition} needs input rows equal to output rows × stride, "
                    f"got {in_rows} and {out_rows} × {layer.stride}"
                )
            return indivisible("its output rows", out_rows)
