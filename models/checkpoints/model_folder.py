"""A model folder as Hugging Face and timm lay it out: config.json beside the tensors, perhaps preprocessor_config.json.

config.json is of transformers (`model_type`) or of timm (`architecture`, `pretrained_cfg`). What it says of the network
must agree with the tensors; what it says of labels and preprocessing is taken over.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cambrian.models.checkpoints.conversion import import_tensors
from cambrian.models.checkpoints.description import Description
from cambrian.models.checkpoints.preprocessing import read_hugging_face_preprocessing, read_timm_preprocessing
from cambrian.models.checkpoints.tensor_files import read_tensors
from cambrian.models.resnet.architecture import IMAGE_CHANNELS, STEM_KERNELS, Architecture
from cambrian.sharding import UsageError

CONFIG, PREPROCESSOR_CONFIG, TENSORS = "config.json", "preprocessor_config.json", "model.safetensors"
_TORCH_TENSORS = "pytorch_model.bin"


def read_model_folder(folder: Path) -> tuple[Architecture, dict[str, np.ndarray], Description, tuple[str, ...]]:
    """Reads a folder with config.json and model.safetensors (or pytorch_model.bin, which needs the extra `torch`).

    Returns:
      The architecture, its variables, what the folder tells of preprocessing and labels, and notes (see
      `models.checkpoints.weights.Weights`).

    Raises:
      UsageError: naming the file, if one is missing or can't be read, or config.json contradicts the tensors or asks
        for a network that isn't computed here.
    """
    tensors = folder / TENSORS if (folder / TENSORS).is_file() else folder / _TORCH_TENSORS
    if not tensors.is_file():
        raise UsageError(f"a model folder needs {TENSORS} or {_TORCH_TENSORS}, got {folder} without either")
    path = folder / CONFIG
    config = _read_json(path)
    architecture, variables = import_tensors(read_tensors(tensors), str(tensors))
    if "model_type" in config:
        _check(config, hugging_face_config(architecture), path)
        labels = _labels_of_ids(config.get("id2label"), path)
        description, notes = Description(), []
        if (folder / PREPROCESSOR_CONFIG).is_file():
            preprocessor = folder / PREPROCESSOR_CONFIG
            description, notes = read_hugging_face_preprocessing(_read_json(preprocessor), preprocessor)
    elif "architecture" in config:
        _check({"architecture": _without_tag(config["architecture"])}, {"architecture": architecture.name}, path)
        pretrained = config.get("pretrained_cfg") or {}
        labels = tuple(config.get("label_names") or pretrained.get("label_names") or ())
        description, notes = read_timm_preprocessing(pretrained, path)
    else:
        raise UsageError(f"{path} needs model_type (transformers) or architecture (timm), got {', '.join(config)}")
    if labels and len(labels) != architecture.num_classes:
        raise UsageError(f"{path} needs labels for {architecture.num_classes} classes, got {len(labels)}")
    return architecture, variables, dataclasses.replace(description, labels=labels), tuple(notes)


def hugging_face_config(architecture: Architecture) -> dict[str, Any]:
    """The keys of transformers' `ResNetConfig` that say which network it is, and three of our own.

    transformers knows the 7×7 stem only; `stem_kernel_size`, `stem_stride` and `stem_pooling` say what another one is.
    """
    imagenet = architecture.stem == "imagenet"
    widths = [
        architecture.width * 2**stage * (4 if architecture.bottleneck else 1)
        for stage in range(len(architecture.blocks))
    ]
    return {
        "model_type": "resnet",
        "num_channels": IMAGE_CHANNELS,
        "embedding_size": architecture.width,
        "hidden_sizes": widths,
        "depths": list(architecture.blocks),
        "layer_type": "bottleneck" if architecture.bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "stem_kernel_size": STEM_KERNELS[architecture.stem],
        "stem_stride": 2 if imagenet else 1,
        "stem_pooling": imagenet,
    }


def _check(config: Mapping[str, Any], needed: Mapping[str, Any], path: Path) -> None:
    """Raises UsageError where `config` has another value than is needed; transformers leaves default values out."""
    for name, value in needed.items():
        if name in config and config[name] != value:
            raise UsageError(f"{path} needs {name} {value}, as its tensors are computed here, got {config[name]}")


def _labels_of_ids(names: Any, path: Path) -> tuple[str, ...]:
    if not names:
        return ()
    try:
        numbered = {int(number): str(name) for number, name in names.items()}
    except (AttributeError, ValueError):
        raise UsageError(f"{path} needs id2label as class number → label, got {names!r:.80}") from None
    if sorted(numbered) != list(range(len(numbered))):
        raise UsageError(
            f"{path} needs id2label for each class from 0 on, got {len(numbered)} labels from {min(numbered)} on"
        )
    labels = tuple(numbered[number] for number in range(len(numbered)))
    # What transformers writes where nobody gave names.
    return () if labels == tuple(f"LABEL_{number}" for number in range(len(labels))) else labels


def _without_tag(architecture: Any) -> str:
    """`resnet50.a1_in1k` → `resnet50`: the tag names the training, not the network."""
    return re.sub(r"\..*", "", str(architecture))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} must be a readable JSON file: {error}") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path} must hold a JSON object, got {type(config).__name__}")
    return config
