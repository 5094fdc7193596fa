"""The names that a variable has in other people's checkpoints.

Checkpoints of torchvision and timm name layers as we do, and only their variables otherwise. Those of Hugging Face have
names of their own, which start with `resnet.` in `ResNetForImageClassification` and without it in `ResNetModel`. All
hold PyTorch's layouts: convolution (out, in, height, width), linear (out, in).
"""

import re
from collections.abc import Callable, Collection

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


def hugging_face_base_name(variable: str) -> str:
    """`layer1.0.conv2.kernel` → `encoder.stages.0.layers.0.layer.1.convolution.weight`."""
    return hugging_face_name(variable).removeprefix("resnet.")


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


NAMINGS: dict[str, Naming] = {
    "torchvision": torchvision_name,
    "Hugging Face": hugging_face_name,
    "Hugging Face, base model": hugging_face_base_name,
}


def find_networks(keys: Collection[str]) -> list[tuple[str, Naming]]:
    """Finds the ResNets among the names of tensors.

    Returns:
      For each network the prefix of its names, such as `module.` or an empty one, and their naming. A network is known
      by the kernel of its stem and any tensor of its first block.
    """
    layers = {key.rsplit(".", 2)[0] for key in keys}
    networks = []
    for key in keys:
        for naming in NAMINGS.values():
            stem, first_layer = naming("conv1.kernel"), naming("layer1.0.conv1.kernel").rsplit(".", 2)[0]
            if key == stem or key.endswith(f".{stem}"):
                prefix = key.removesuffix(stem)
                if prefix + first_layer in layers:
                    networks.append((prefix, naming))
                break  # the names of a base model end those of a whole one
    return networks
