"""Cases: everything that the time of a layer on one device depends on. A cost table maps cases to times."""

import dataclasses

from cambrian.models.lowerings import Call, Window, lowerings_for
from cambrian.models.lowerings.lowering import Padding, kernel_dtype
from cambrian.sharding import Kind, LayerSpec, Layout, MeshShape, Partition, layouts
from cambrian.sharding.plan_semantics import halo_rows

_FREE_ACTIVATIONS = (None, "RELU", "RELU6")


@dataclasses.dataclass(frozen=True, slots=True)
class LayerCase:
    """A layer as one device computes it, and the number of devices that compute concurrently.

    Attributes:
      kind: kind of the layer.
      lowering: name of the lowering.
      kernel: height and width of the window.
      stride: stride of the window along both axes.
      rows: number of input rows, including the halo if rows are cut.
      columns: number of input columns.
      padding: rows (above, below) and columns (left, right) of padding.
      in_channels: number of channels that the device reads.
      out_channels: number of channels that the device computes.
      residual: whether the layer adds a residual.
      samples: number of samples computed at a time.
      dtype: dtype of activations and kernels, which are int8 with activations of uint8 or int8.
      devices: number of devices of the mesh, or of concurrent launches on a single device; they share the host's cores.
      groups: number of channel groups that the device computes.
      activation: name of the activation, unless it takes no time, as a ReLU.
    """

    kind: str
    lowering: str
    kernel: int
    stride: int
    rows: int
    columns: int
    padding: Padding
    in_channels: int
    out_channels: int
    residual: bool
    samples: int
    dtype: str
    devices: int
    groups: int = 1
    activation: str | None = None

    @property
    def window(self) -> Window:
        return Window.square(self.kernel, self.stride, self.padding)

    @property
    def in_shape(self) -> tuple[int, int, int, int]:
        return self.samples, self.rows, self.columns, self.in_channels

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        rows, columns = (1, 1) if self.kind == Kind.MEAN_POOL else self.window.out_size(self.in_shape)
        return self.samples, rows, columns, self.out_channels

    def call(self, activation: str | None, summed: bool = False) -> Call:
        """Returns the call of the lowering; `activation` and `summed` as in `Call`."""
        return Call(
            self.in_shape,
            self.out_channels,
            self.window,
            self.dtype,
            self.out_dtype,
            self.groups,
            self.residual,
            activation,
            summed=summed,
        )

    @property
    def out_dtype(self) -> str:
        """The dtype of the output: the input's, except that logits are float32 and integers uint8."""
        if self.kind == Kind.DENSE:
            return "float32"
        return "uint8" if kernel_dtype(self.dtype) == "int8" else self.dtype

    @property
    def has_weights(self) -> bool:
        return self.kind in (Kind.CONV, Kind.DENSE)

    @property
    def flops(self) -> int:
        """Floating-point operations on one device by direct convolution; a multiply-add counts as two."""
        if not self.has_weights:
            return 0
        samples, rows, columns, channels = self.out_shape
        return 2 * samples * rows * columns * channels * self.kernel**2 * self.in_channels // self.groups


def dtype_of(layer: LayerSpec, precision: str) -> str:
    """Returns the dtype of a layer's operands; in int8 those that aren't quantised are in float32."""
    return layer.quantized or ("float32" if precision == "int8" else precision)


def case_of(
    layer: LayerSpec, partition: Partition, lowering: str, samples: int, dtype: str, mesh: MeshShape
) -> LayerCase:
    """Returns the case of a layer under a partition and lowering, with `samples` at a time."""
    rows, columns, in_channels = layer.in_shape
    out_channels, pad_rows, groups = layer.out_shape[2], layer.padding, layer.groups
    if partition == Partition.ROWS:
        rows, pad_rows = rows // mesh.model + sum(halo_rows(layer)), (0, 0)
    reads, makes = layouts(layer, partition)
    if reads == Layout.CHANNELS:
        in_channels, groups = in_channels // mesh.model, max(groups // mesh.model, 1)
    if makes == Layout.CHANNELS:
        out_channels //= mesh.model
    return LayerCase(
        kind=str(layer.kind),
        lowering=lowering,
        kernel=layer.kernel,
        stride=layer.stride,
        rows=rows,
        columns=columns,
        padding=(pad_rows, layer.padding),
        in_channels=in_channels,
        out_channels=out_channels,
        residual=layer.residual is not None,
        samples=samples,
        dtype=dtype,
        devices=mesh.num_devices,
        groups=groups,
        activation=None if layer.activation in _FREE_ACTIVATIONS else layer.activation,
    )


def call_of(layer: LayerSpec, dtype: str = "float32") -> Call:
    """Returns the call that computes a layer, whole, for one sample."""
    return case_of(layer, Partition.WHOLE, "", 1, dtype, MeshShape(1, 1)).call(layer.activation)


def lowerings_of(layer: LayerSpec, platform: str, dtype: str) -> list[str]:
    """Returns the names of the lowerings that compute `layer` on this platform accurately enough for `dtype`."""
    if not layer.has_weights:
        return ["native"]
    names = lowerings_for(call_of(layer, dtype), platform)
    return [name for name in names if not (layer.kind == Kind.DENSE and name == "native")]  # of a single pixel
