"""The variables of a ResNet: a flat dict of name → float32 array, the common form of weights in this package.

Names follow the Flax model: `conv1.kernel` (height, width, in, out), `bn1.{scale,bias,mean,var}`,
`layer1.0.conv1.kernel`, …, `layer1.0.downsample.conv.kernel`, `layer1.0.downsample.bn.*`, `fc.kernel` (in, out),
`fc.bias`.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np

from cambrian.models.resnet.architecture import Architecture, network
from cambrian.sharding import Kind, UsageError

Variables = Mapping[str, np.ndarray]
NORM_VARIABLES = ("scale", "bias", "mean", "var")


def conv_and_norm(layer: str) -> tuple[str, str]:
    """Returns the names of the convolution and the batch norm that form the layer `layer` of the network."""
    if layer.endswith("downsample"):
        return f"{layer}.conv", f"{layer}.bn"
    return layer, "bn".join(layer.rsplit("conv", 1))


def expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Returns name → shape of every variable, in the order of computation."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in network(architecture, image_size=1):  # variables don't depend on the image size
        in_channels, out_channels = layer.in_shape[2], layer.out_shape[2]
        if layer.kind == Kind.CONV:
            conv, norm = conv_and_norm(layer.name)
            shapes[f"{conv}.kernel"] = (layer.kernel, layer.kernel, in_channels, out_channels)
            shapes |= {f"{norm}.{name}": (out_channels,) for name in NORM_VARIABLES}
        elif layer.kind == Kind.DENSE:
            shapes[f"{layer.name}.kernel"] = (in_channels, out_channels)
            shapes[f"{layer.name}.bias"] = (out_channels,)
    return shapes


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
