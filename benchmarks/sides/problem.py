"""What every side computes: one network with the same weights on the same images."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from cambrian import models
from cambrian.commands.model import default_model
from cambrian.models.resnet.architecture import Architecture
from cambrian.sharding import Network

PRESET_OF_STEM = {"cifar": "resnet101_cifar10", "imagenet": "resnet101_imagenet"}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A network, its weights and its images.

    Attributes:
      variables: as `models.random_variables` gives them; `params` are the same with folded batch norms.
      images: (N, H, W, C) uint8; a launch of B takes the first B.
      mean, std: per channel, of pixels scaled to 0…1.
    """

    architecture: Architecture
    network: Network
    variables: Mapping[str, np.ndarray]
    params: Mapping[str, np.ndarray]
    images: np.ndarray
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def normalised(self, batch: int) -> np.ndarray:
        """The first `batch` images (N, H, W, C), normalised, float32."""
        return ((self.images[:batch] / 255 - self.mean) / self.std).astype(np.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class Runner:
    """One side, ready to launch.

    Attributes:
      run: `run(launches)` launches a batch so many times and gives the logits (batch, num_classes) float32 of one of
        them, all of which are on the host by then.
      in_flight: how many of the launches overlap.
    """

    run: Callable[[int], np.ndarray]
    in_flight: int = 1


def make_problem(
    architecture: Architecture, images: np.ndarray, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
) -> Problem:
    """The problem with random weights."""
    variables = models.random_variables(architecture)
    return Problem(
        architecture=architecture,
        network=models.network(architecture, images.shape[1]),
        variables=variables,
        params=models.fold(architecture, variables),
        images=images,
        mean=mean,
        std=std,
    )


def resnet101(stem: str, images: np.ndarray) -> Problem:
    """ResNet101 as the configuration of this stem has it, with random weights."""
    model = default_model(stem)
    architecture = Architecture.resnet(model.depth, stem, model.num_classes)
    return make_problem(architecture, images, model.preprocessing.mean, model.preprocessing.std)
