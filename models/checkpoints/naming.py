"""The names that a variable has in other people's checkpoints.

A checkpoint of torchvision or timm names layers as we do and only their variables otherwise; one of Hugging Face
(`ResNetForImageClassification`) has names of its own. Both hold PyTorch's layouts: convolution (out, in, height,
width), linear (out, in).
"""

import re
from collections.abc import Callable

Naming = Callable[[str], str]

_TORCH_VARIABLES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_TORCH_DOWNSAMPLE = {"conv": "0", "bn": "1"}
_HUGGING_FACE_PARTS = {"conv": "convolution", "bn": "normalization"}


def torchvision_name(variable: str) -> str:
    """`layer1.0.downsample.conv.kernel` → `layer1.0.downsample.0.weight`."""
    layer, _, kind = variable.rpartition(".")
    layer = re.sub(r"(?<=\.downsample\.)(conv|bn)$", lambda match: _TORCH_DOWNSAMPLE[match[1]], layer)
    return f"{layer}.{_TORCH_VARIABLES[kind]}"


def hugging_face_name(variable: str) -> str:
    """`layer1.0.conv2.kernel` → `resnet.encoder.stages.0.layers.0.layer.1.convolution.weight`."""
    layer, _, kind = variable.rpartition(".")
    return f"{_hugging_face_layer(layer)}.{_TORCH_VARIABLES[kind]}"


def _hugging_face_layer(layer: str) -> str:
    if layer == "fc":
        return "classifier.1"
    if layer in ("conv1", "bn1"):
        return f"resnet.embedder.embedder.{_HUGGING_FACE_PARTS[layer[:-1]]}"
    match = re.fullmatch(r"layer(\d+)\.(\d+)\.(downsample\.)?(conv|bn)(\d*)", layer)
    assert match is not None, layer
    stage, block, downsample, part, number = match.groups()
    member = "shortcut" if downsample else f"layer.{int(number) - 1}"
    return f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}.{member}.{_HUGGING_FACE_PARTS[part]}"


NAMINGS: dict[str, Naming] = {"torchvision": torchvision_name, "Hugging Face": hugging_face_name}
