"""The architecture of ResNets, without any framework: depth, stem and residual blocks."""

import dataclasses
from collections.abc import Iterator

from cambrian.sharding import UsageError

# Depth → number of blocks of each stage, and whether they are bottlenecks (He et al., arXiv:1512.03385, table 1).
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
STEM_KERNELS = {"imagenet": 7, "cifar": 3}
IMAGE_CHANNELS = 3
BATCH_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True, slots=True)
class Architecture:
    """A ResNet v1.5, with the stride of a bottleneck on its 3×3 convolution.

    Attributes:
      stem: `imagenet` (7×7, stride 2, then 3×3 max pooling, stride 2) or `cifar` (3×3, stride 1).
      blocks: number of residual blocks in each stage; every stage but the first halves the image.
      bottleneck: whether blocks are bottlenecks, 1×1, 3×3 and 1×1 convolutions that widen fourfold, or two 3×3
        convolutions.
      num_classes: number of logits.
      width: number of channels of the stem; the inner width of blocks doubles with each stage.

    Raises:
      UsageError: if the stem is unknown or a number is smaller than 1.
    """

    stem: str
    blocks: tuple[int, ...]
    bottleneck: bool
    num_classes: int
    width: int = 64

    def __post_init__(self):
        if self.stem not in STEM_KERNELS:
            raise UsageError(f"the stem must be one of {', '.join(STEM_KERNELS)}, got {self.stem!r}")
        if not self.blocks or min(self.blocks) < 1:
            raise UsageError(f"a ResNet must have at least 1 stage and 1 block in each, got blocks {self.blocks}")
        if self.num_classes < 1 or self.width < 1:
            raise UsageError(
                f"a ResNet must have at least 1 class and 1 channel, got {self.num_classes} classes and width "
                f"{self.width}"
            )

    @classmethod
    def resnet(cls, depth: int, stem: str, num_classes: int) -> "Architecture":
        """Returns the ResNet of the paper with `depth` layers.

        Raises:
          UsageError: if the depth is not 18, 34, 50, 101 or 152.
        """
        if depth not in DEPTHS:
            raise UsageError(f"the depth of a ResNet must be one of {', '.join(map(str, DEPTHS))}, got {depth}")
        blocks, bottleneck = DEPTHS[depth]
        return cls(stem, blocks, bottleneck, num_classes)

    @property
    def depth(self) -> int:
        """Number of layers with weights, without shortcuts."""
        return 2 + sum(self.blocks) * (3 if self.bottleneck else 2)

    @property
    def name(self) -> str:
        """The usual name, such as `resnet101`."""
        return f"resnet{self.depth}"


@dataclasses.dataclass(frozen=True, slots=True)
class ResidualBlock:
    """A residual block: block `index`, counted from 0, of `stage`, counted from 1, as in torchvision's names."""

    stage: int
    index: int
    bottleneck: bool
    in_channels: int
    inner_channels: int
    out_channels: int
    stride: int

    @property
    def name(self) -> str:
        return f"layer{self.stage}.{self.index}"

    @property
    def has_downsample(self) -> bool:
        """Whether the skip connection has a convolution to match the shape of the output."""
        return self.stride != 1 or self.in_channels != self.out_channels

    @property
    def convolutions(self) -> tuple[tuple[int, int, int], ...]:
        """(output channels, kernel, stride) of each convolution except the downsampling one."""
        inner = self.inner_channels
        if self.bottleneck:
            return (inner, 1, 1), (inner, 3, self.stride), (self.out_channels, 1, 1)
        return (inner, 3, self.stride), (self.out_channels, 3, 1)


def residual_blocks(architecture: Architecture) -> Iterator[ResidualBlock]:
    """Yields the residual blocks in the order of computation."""
    channels = architecture.width
    for stage, count in enumerate(architecture.blocks, start=1):
        inner = architecture.width * 2 ** (stage - 1)
        out_channels = 4 * inner if architecture.bottleneck else inner
        for index in range(count):
            stride = 2 if stage > 1 and index == 0 else 1
            yield ResidualBlock(stage, index, architecture.bottleneck, channels, inner, out_channels, stride)
            channels = out_channels
