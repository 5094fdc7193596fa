"""Trained weights from where people have them: a file of tensors, a model folder, or a checkpoint of our training."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from cambrian.models.checkpoints.conversion import import_tensors
from cambrian.models.checkpoints.description import Description
from cambrian.models.checkpoints.tensor_files import read_tensors
from cambrian.models.resnet.architecture import Architecture


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A trained ResNet.

    Attributes:
      architecture: found in the tensors.
      variables: all of the architecture's (see `models.resnet.variables`), float32.
      description: what the checkpoint tells of preprocessing and labels.
      notes: in words, where the checkpoint asks for what is done another way here.
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
        torchvision, timm or Hugging Face; a model folder of Hugging Face or timm (see `model_folder`); or a checkpoint
        of our training (see `models.training.checkpoints`), one step or the folder of them, of which the newest is
        taken.

    Raises:
      UsageError: naming path and key, if the path can't be read, the naming isn't recognised, a tensor is missing, left
        over, of the wrong shape, or holds no floating-point numbers, or a file beside the tensors contradicts them.
    """
    path = Path(path)
    if not path.is_dir():
        return Weights(*import_tensors(read_tensors(path), str(path)))
    # Each is imported only where needed: orbax takes seconds.
    if (path / "config.json").is_file():
        from cambrian.models.checkpoints.model_folder import read_model_folder

        return Weights(*read_model_folder(path))
    from cambrian.models.training.checkpoints import read_trained

    return Weights(*read_trained(path))
