"""A model folder as Hugging Face and timm lay it out: config.json beside the tensors, perhaps preprocessor_config.json.

config.json belongs to transformers (`model_type`), or to timm or its wrapper in transformers (`architecture`,
`pretrained_cfg`). What it states about the network must agree with the tensors; labels and preprocessing are taken
over.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from cambrian.models.checkpoints.conversion import import_tensors
from cambrian.models.checkpoints.description import Description
from cambrian.models.checkpoints.hugging_face_processor import hugging_face_preprocessing
from cambrian.models.checkpoints.network_config import check_hugging_face, check_timm, stem_notes
from cambrian.models.checkpoints.preprocessing import timm_preprocessing
from cambrian.models.checkpoints.tensor_files import read_tensors
from cambrian.models.resnet.architecture import Architecture
from cambrian.sharding import UsageError

CONFIG, PREPROCESSOR_CONFIG, TENSORS = "config.json", "preprocessor_config.json", "model.safetensors"
TENSOR_FILES = (TENSORS, "pytorch_model.bin")  # in the order of preference
_LABELS = ("label_names", "label_descriptions")
_PRETRAINED = (
    *("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "labels", "label_descriptions"),
    *("classifier", "first_conv", "fixed_input_size", "pool_size", "test_crop_pct", "test_input_size", "url"),
)


def read_model_folder(
    folder: Path, tensor_file: Path | None = None
) -> tuple[Architecture, dict[str, np.ndarray], Description, tuple[str, ...]]:
    """Reads a folder with config.json and model.safetensors (or pytorch_model.bin, which needs the extra `torch`).

    Args:
      tensor_file: which of the two to read; None for the first that there is.

    Returns:
      The architecture, its variables, preprocessing and labels, and notes (see `models.checkpoints.weights.Weights`).

    Raises:
      UsageError: naming the file, if one is missing or can't be read, or config.json contradicts the tensors or asks
        for a network that isn't computed here.
    """
    found = [folder / name for name in TENSOR_FILES if (folder / name).is_file()]
    if not found:
        raise UsageError(f"a model folder must hold {' or '.join(TENSOR_FILES)}, got {folder} without either")
    tensor_file = tensor_file or found[0]
    path = folder / CONFIG
    config = _in_new_form(_read_json(path))
    tensors, unread = read_tensors(tensor_file)
    architecture, variables, notes = import_tensors(tensors, str(tensor_file))
    description = Description()
    if "architecture" in config:  # `model_type` is timm_wrapper in transformers
        more_notes = check_timm(config, architecture, path)
        pretrained = config.get("pretrained_cfg") or {}
        if not isinstance(pretrained, dict):
            raise UsageError(f"{path}: pretrained_cfg must be an object, got {pretrained!r:.80}")
        names, descriptions = (config.get(name) or pretrained.get(name) for name in _LABELS)
        labels = _timm_labels(names, descriptions or {}, path) or _labels_of_ids(config.get("id2label"), path)
        description = Description(timm_preprocessing(pretrained, path))
    elif "model_type" in config:
        more_notes = check_hugging_face(config, architecture, path)
        labels = _labels_of_ids(config.get("id2label"), path)
        preprocessor = folder / PREPROCESSOR_CONFIG
        if preprocessor.is_file():
            description = Description(hugging_face_preprocessing(_read_json(preprocessor), preprocessor))
    else:
        raise UsageError(
            f"{path} must have model_type (transformers) or architecture (timm), got {', '.join(config) or 'no keys'}"
        )
    if labels and len(labels) != architecture.num_classes:
        raise UsageError(f"{path} must have labels for {architecture.num_classes} classes, got {len(labels)}")
    notes = (*unread, *notes, *more_notes, *stem_notes(architecture, config))
    return architecture, variables, dataclasses.replace(description, labels=labels), notes


def _in_new_form(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json as timm writes it today: once, what is under `pretrained_cfg` stood beside the architecture."""
    if "architecture" not in config or "pretrained_cfg" in config:
        return config
    settings = {name: config[name] for name in _PRETRAINED if name in config}
    settings["label_names"] = config.get("labels") or config.get("label_names")
    return {name: value for name, value in config.items() if name not in settings} | {"pretrained_cfg": settings}


def _labels_of_ids(names: Any, path: Path) -> tuple[str, ...]:
    if not names:
        return ()
    try:
        numbered = {int(number): name for number, name in names.items()}
    except (AttributeError, ValueError):
        raise UsageError(f"{path}: id2label must be class number → label, got {names!r:.80}") from None
    if sorted(numbered) != list(range(len(numbered))):
        raise UsageError(
            f"{path}: id2label must name each class from 0 on, got {len(numbered)} labels from {min(numbered)} on"
        )
    return _named([numbered[number] for number in range(len(numbered))], "id2label", path)


def _timm_labels(names: Any, descriptions: Any, path: Path) -> tuple[str, ...]:
    """Labels such as `n01440764 tench, Tinca tinca` where timm gives a description of each name."""
    if not isinstance(names or [], list) or not isinstance(descriptions, dict):
        raise UsageError(f"{path}: label_names must be a list and label_descriptions name → text, got {names!r:.80}")
    labels = _named(names or [], "label_names", path)
    return tuple(f"{name} {descriptions[name]}" if name in descriptions else name for name in labels)


def _named(labels: list[Any], key: str, path: Path) -> tuple[str, ...]:
    for label in labels:
        if not isinstance(label, str):
            raise UsageError(f"{path}: labels in {key} must be strings, got {label!r:.80}")
    # What transformers writes where nobody gave names.
    return () if labels == [f"LABEL_{number}" for number in range(len(labels))] else tuple(labels)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} must be a readable JSON file: {error}") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path} must hold a JSON object, got {type(config).__name__}")
    return config
