"""Trained weights from where people have them: a file of tensors, a model folder, or a checkpoint of our training."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from cambrian.models.checkpoints.conversion import import_tensors
from cambrian.models.checkpoints.description import Description
from cambrian.models.checkpoints.network_config import stem_notes
from cambrian.models.checkpoints.preprocessing import torchvision_preprocessing
from cambrian.models.checkpoints.tensor_files import read_tensors
from cambrian.models.resnet.architecture import Architecture
from cambrian.sharding import UsageError


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A trained ResNet.

    Attributes:
      architecture: found in the tensors.
      variables: all of the architecture's (see `models.resnet.variables`), float32.
      description: preprocessing and labels, as far as the checkpoint states them.
      notes: what was assumed, left out, or is done another way here.
    """

    architecture: Architecture
    variables: dict[str, np.ndarray]
    description: Description = Description()
    notes: tuple[str, ...] = ()

    def told(self) -> dict[str, Any]:
        """Depth, stem, number of classes and the description's facts, under the names of a model's configuration."""
        architecture = self.architecture
        facts = {"depth": architecture.depth, "stem": architecture.stem, "num_classes": architecture.num_classes}
        return facts | self.description.known()


def read_weights(path: str | os.PathLike) -> Weights:
    """Reads a checkpoint of a ResNet.

    Args:
      path: a safetensors file, or a file of PyTorch with tensors only (needs the extra `torch`), under the names of
        torchvision, timm or Hugging Face; a model folder of Hugging Face or timm (see `model_folder`), or the file of
        tensors in it; or a checkpoint of our training (see `models.training.checkpoints`), one step or the folder of
        them, of which the newest whole one is taken.

    Raises:
      UsageError: naming path and key, if the path can't be read, there isn't exactly one ResNet, a tensor is missing,
        left over, of the wrong shape, without floating-point numbers or not finite, or a file beside the tensors
        contradicts them.
    """
    path = Path(path)
    try:
        return _read(path)
    except OSError as error:
        raise UsageError(f"weights must be a path that can be read, got {path}: {error.strerror}") from None


def _read(path: Path) -> Weights:
    # Each reader is imported only where needed: orbax takes seconds.
    from cambrian.models.checkpoints.model_folder import CONFIG, TENSOR_FILES, read_model_folder

    if path.name in TENSOR_FILES and path.is_file() and (path.parent / CONFIG).is_file():
        return Weights(*read_model_folder(path.parent, path))
    if not path.is_dir():
        tensors, unread = read_tensors(path)
        architecture, variables, notes = import_tensors(tensors, str(path))
        description = Description(torchvision_preprocessing(path))
        return Weights(architecture, variables, description, (*unread, *notes, *stem_notes(architecture)))
    if (path / CONFIG).is_file():
        return Weights(*read_model_folder(path))
    from cambrian.models.training.checkpoints import read_trained

    return Weights(*read_trained(path))
