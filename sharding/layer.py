"""What the plan knows of a layer: its shapes, its kernel and which layers it reads."""

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
    """One layer of a network of images (N, H, W, C); a network is a tuple of them in the order of computation.

    Attributes:
      name: unique in the network; parameters are named after it.
      kind: what it computes.
      input: name of the layer whose output it reads; None for the images.
      in_shape, out_shape: (H, W, C) of one sample, with H = W = 1 after `mean_pool`.
      kernel, stride, padding: of the window, the same for height and width.
      residual: name of the layer whose output is added before the ReLU, or None.
      relu: whether a ReLU ends the layer.
    """

    name: str
    kind: Kind
    input: str | None
    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    residual: str | None = None
    relu: bool = False

    @property
    def has_weights(self) -> bool:
        return self.kind in (Kind.CONV, Kind.DENSE)

    @property
    def flops(self) -> int:
        """Multiplications and additions for one sample, counted as two."""
        if not self.has_weights:
            return 0
        rows, columns, channels = self.out_shape
        return 2 * rows * columns * channels * self.kernel**2 * self.in_shape[2]


Network = tuple[LayerSpec, ...]
