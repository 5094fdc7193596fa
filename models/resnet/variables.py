"""A ResNet's variables: one flat dict, name → float32 array, the form in which weights move between the parts.

Names are those of the Flax model: `conv1.kernel` (height, width, in, out), `bn1.{scale,bias,mean,var}`,
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
    """The names of the convolution and of the batch norm that together are the network's layer `layer`."""
    if layer.endswith("downsample"):
        return f"{layer}.conv", f"{layer}.bn"
    return layer, "bn".join(layer.rsplit("conv", 1))


def expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name → shape of every variable, in the order of computation."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in network(architecture, image_size=1):  # no shape of a variable depends on the image
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
    """Raises UsageError, naming the variable, if one is missing, left over, or of the wrong shape."""
    expected = expected_shapes(architecture)
    for name, shape in expected.items():
        if name not in variables:
            raise UsageError(f"{architecture.name} needs the variable {name}, which is missing")
        if variables[name].shape != shape:
            raise UsageError(f"variable {name} of {architecture.name} needs shape {shape}, got {variables[name].shape}")
    for name in variables:
        if name not in expected:
            raise UsageError(f"{architecture.name} has no variable {name}")


def initial_variables(architecture: Architecture, seed: int = 0) -> dict[str, np.ndarray]:
    """Variables from which training starts; each depends on seed, name and shape alone.

    Kernels are He-normal by their outputs (arXiv:1502.01852), batch norms do nothing, and every block is the identity,
    because its last scale is 0 (Goyal et al., arXiv:1706.02677, section 5.1). The head is uniform as PyTorch's.
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
    """Random variables under which every layer shapes the logits; each depends on seed, name and shape alone.

    Kernels are He-normal (arXiv:1502.01852). The last scale of a block is small, which keeps the sum over many blocks
    bounded; the statistics are not those of any data.
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
