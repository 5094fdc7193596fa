"""The variables of a ResNet: a flat dict of name → float32 array, the common form of weights in this package.

Names follow the Flax model: `conv1.kernel` (height, width, in, out), `bn1.{scale,bias,mean,var}`,
`layer1.0.conv1.kernel`, …, `layer1.0.downsample.conv.kernel`, `layer1.0.downsample.bn.*`, `fc.kernel` (in, out),
`fc.bias`.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np

from cambrian.models.resnet.architecture import IMAGE_CHANNELS, STEM_KERNELS, Architecture, residual_blocks
from cambrian.sharding import UsageError

Variables = Mapping[str, np.ndarray]
NORM_VARIABLES = ("scale", "bias", "mean", "var")


def expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Returns name → shape of every variable, in the order of computation."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(conv: str, norm: str, size: int, in_channels: int, out_channels: int) -> int:
        shapes[f"{conv}.kernel"] = (size, size, in_channels, out_channels)
        shapes.update({f"{norm}.{name}": (out_channels,) for name in NORM_VARIABLES})
        return out_channels

    channels = add("conv1", "bn1", STEM_KERNELS[architecture.stem], IMAGE_CHANNELS, architecture.width)
    for block in residual_blocks(architecture):
        *inner, last = enumerate(block.convolutions, start=1)
        for number, (out_channels, size, _) in inner:
            channels = add(f"{block.name}.conv{number}", f"{block.name}.bn{number}", size, channels, out_channels)
        if block.has_downsample:
            name = f"{block.name}.downsample"
            add(f"{name}.conv", f"{name}.bn", 1, block.in_channels, block.out_channels)
        number, (out_channels, size, _) = last
        channels = add(f"{block.name}.conv{number}", f"{block.name}.bn{number}", size, channels, out_channels)
    return shapes | {"fc.kernel": (channels, architecture.num_classes), "fc.bias": (architecture.num_classes,)}


def check_variables(architecture: Architecture, variables: Variables) -> None:
    """Raises UsageError, naming the variable, if one is missing, left over or of the wrong shape."""
    expected = expected_shapes(architecture)
    for name, shape in expected.items():
        if name not in variables:
            raise UsageError(f"expected the variable {name} of {architecture.name}, got none")
        if variables[name].shape != shape:
            raise UsageError(
                f"variable {name} of {architecture.name} must have shape {shape}, got {variables[name].shape}"
            )
    for name in variables:
        if name not in expected:
            raise UsageError(f"{architecture.name} has no variable {name}")


def initial_variables(architecture: Architecture, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns initial variables for training; each depends only on seed, name and shape.

    Kernels are He-normal in fan-out mode (arXiv:1502.01852), batch norms are identities, and so is every block, as its
    last scale is 0 (Goyal et al., arXiv:1706.02677, section 5.1). The head is uniform as in PyTorch.
    """
    last_norm = ".bn3.scale" if architecture.bottleneck else ".bn2.scale"
    variables = {}
    for name, shape in expected_shapes(architecture).items():
        rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
        if name.startswith("fc."):
            limit = 1 / math.sqrt(expected_shapes(architecture)["fc.kernel"][0])
            value = rng.uniform(-limit, limit, shape)
        elif name.endswith(".kernel"):
            fan_out = shape[0] * shape[1] * shape[3]
            value = rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / fan_out))
        elif name.endswith((".scale", ".var")):
            value = np.full(shape, 0.0 if name.endswith(last_norm) else 1.0)
        else:
            value = np.zeros(shape)
        variables[name] = value.astype(np.float32, copy=False)
    return variables


def random_variables(architecture: Architecture, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random variables with which every layer affects the logits; each depends only on seed, name and shape.

    Kernels are He-normal (arXiv:1502.01852). The last scale of a block is small, which bounds the sum over many blocks.
    The statistics are random.
    """
    last_norm = ".bn3" if architecture.bottleneck else ".bn2"
    variables = {}
    for name, shape in expected_shapes(architecture).items():
        rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
        layer, _, kind = name.rpartition(".")
        match kind:
            case "kernel":
                gain = 1 if layer == "fc" else 2
                value = rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(gain / math.prod(shape[:-1])))
            case "scale":
                value = rng.uniform(*((0.1, 0.3) if layer.endswith(last_norm) else (0.5, 1.5)), shape)
            case "var":
                value = rng.uniform(0.5, 1.5, shape)
            case _:
                value = rng.normal(0, 0.1, shape)
        variables[name] = value.astype(np.float32, copy=False)
    return variables
