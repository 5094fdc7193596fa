"""Random weights of a small ResNet as other people's checkpoints hold them."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from cambrian.models.checkpoints.naming import NAMINGS
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.variables import random_variables

SMALL = Architecture("cifar", (1, 2), True, 5, width=4)


def checkpoint(architecture: Architecture, naming: str = "torchvision") -> dict[str, np.ndarray]:
    to_torch = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    tensors = {}
    for variable, value in random_variables(architecture).items():
        key = NAMINGS[naming](variable)
        tensors[key] = np.ascontiguousarray(value.transpose(to_torch[value.ndim]))
        if key.endswith("running_var"):
            tensors[key.replace("running_var", "num_batches_tracked")] = np.array(1, np.int64)
    return tensors


def saved(tensors: dict[str, np.ndarray], folder: Path) -> Path:
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return path
