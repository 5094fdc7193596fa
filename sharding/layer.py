"""The description of a layer that plans are made from: its shapes, its window and the layers that it reads."""

import dataclasses
import enum


class Kind(enum.StrEnum):
    """What a layer computes."""

    CONV = "conv"
    MAX_POOL = "max_pool"
    MEAN_POOL = "mean_pool"  # over all of H and W
    DENSE = "dense"


@dataclasses.dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer of a network on images (N, H, W, C); a network is a tuple of layers in the order of computation.

    Attributes:
      name: unique name, the prefix of the layer's parameters.
      kind: operation that the layer computes.
      input: name of the layer whose output is read; None for the images.
      in_shape: (H, W, C) of one input sample, with H = W = 1 after `mean_pool`.
      out_shape: (H, W, C) of one output sample.
      kernel: height and width of the window; of a dense layer H = W, so that it reads all pixels.
      stride: stride of the window along both axes.
      padding: padding before and after the images along both axes.
      groups: number of channel groups, each convolved by itself.
      residual: name of the layer whose output is added before the activation; None if there is none.
      activation: name of the activation that ends the layer; None if there is none.
      quantized: dtype of the integers that the layer reads, uint8 or int8; empty for a layer on floats.
    """

    name: str
    kind: Kind
    input: str | None
    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    kernel: int = 1
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    residual: str | None = None
    activation: str | None = None
    quantized: str = ""

    @property
    def has_weights(self) -> bool:
        return self.kind in (Kind.CONV, Kind.DENSE)

    @property
    def flops(self) -> int:
        """Floating-point operations for one sample; a multiply-add counts as two."""
        if not self.has_weights:
            return 0
        rows, columns, channels = self.out_shape
        return 2 * rows * columns * channels * self.kernel**2 * self.in_shape[2] // self.groups


Network = tuple[LayerSpec, ...]
