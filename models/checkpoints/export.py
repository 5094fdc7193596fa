"""Writes a network as a model folder of Hugging Face: what users of PyTorch and transformers load."""

import json
import os
from pathlib import Path

from safetensors.numpy import save

from cambrian.models.checkpoints.conversion import export_tensors
from cambrian.models.checkpoints.hugging_face_processor import hugging_face_processor
from cambrian.models.checkpoints.model_folder import CONFIG, PREPROCESSOR_CONFIG, TENSORS
from cambrian.models.checkpoints.network_config import hugging_face_config
from cambrian.models.checkpoints.weights import Weights
from cambrian.sharding.host.files import replace_file


def export_hugging_face(weights: Weights, folder: str | os.PathLike) -> None:
    """Writes model.safetensors, config.json and preprocessor_config.json; `read_weights` reads them back unchanged.

    `transformers.ResNetForImageClassification.from_pretrained(folder)` gives the same logits where the stem is the
    7×7 one; for the 3×3 stem its first convolution must be replaced and its pooling left out before the tensors are
    loaded.

    Raises:
      UsageError: if a variable is missing, left over, or of the wrong shape.
      OSError: naming the path, if it can't be written.
    """
    tensors = export_tensors(weights.architecture, weights.variables)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # transformers refuses files that don't say which framework they are of.
    replace_file(folder / TENSORS, save(tensors, metadata={"format": "pt"}))
    labels = weights.description.labels or tuple(
        f"LABEL_{number}" for number in range(weights.architecture.num_classes)
    )
    config = {
        "architectures": ["ResNetForImageClassification"],
        **hugging_face_config(weights.architecture),
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    _write_json(folder / CONFIG, config)
    if (preprocessing := weights.description.preprocessing) is not None:
        _write_json(folder / PREPROCESSOR_CONFIG, hugging_face_processor(preprocessing))
    else:
        (folder / PREPROCESSOR_CONFIG).unlink(missing_ok=True)  # of other weights


def _write_json(path: Path, value: object) -> None:
    replace_file(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
