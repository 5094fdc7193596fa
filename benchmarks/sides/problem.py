"""The problem that every side computes: one network with the same weights on the same images."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cambrian import models
from cambrian.commands.model import default_model
from cambrian.models.graph.quantization import Quantized
from cambrian.models.graph.read_layers import layered_network
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.flax_resnet import as_function, load_resnet
from cambrian.sharding import Kind, Network, Plan, Program

STEMS = ("cifar", "imagenet")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A network, its weights and its images.

    Attributes:
      architecture: architecture of the network.
      network: layers of the network.
      variables: variables from `models.random_variables`.
      params: the same weights with folded batch norms; kernels of dense layers are matrices (in, out).
      images: images (N, H, W, C) uint8; a launch of batch size B takes the first B.
      mean: mean of each channel, of pixels scaled to 0…1.
      std: standard deviation of each channel, of pixels scaled to 0…1.
    """

    architecture: Architecture
    network: Network
    variables: Mapping[str, np.ndarray]
    params: Mapping[str, np.ndarray]
    images: np.ndarray
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def normalised(self, batch: int) -> np.ndarray:
        """Returns the first `batch` images (N, H, W, C), normalised, in float32."""
        return ((self.images[:batch] / 255 - self.mean) / self.std).astype(np.float32)

    @property
    def pixels(self) -> dict[str, Any]:
        """Size and normalisation of the images, as `models.build_program` and `models.quantize` take them."""
        return {"image_size": self.images.shape[1], "mean": self.mean, "std": self.std}

    def program(
        self, plan: Plan, mesh: Mesh, batch: int, precision: str, quantized: Quantized | None = None
    ) -> Program:
        """Returns our program of the network, from uint8 images to logits."""
        return models.build_program(
            self.architecture,
            self.variables,
            plan,
            mesh,
            batch_size=batch,
            precision=precision,
            quantized=quantized,
            **self.pixels,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Runner:
    """A side that is ready to launch.

    Attributes:
      run: `run(launches)` launches a batch `launches` times, fetches all logits, and returns those of one launch,
        (batch, num_classes) float32.
      in_flight: number of launches that overlap.
    """

    run: Callable[[int], np.ndarray]
    in_flight: int = 1


def make_problem(
    architecture: Architecture, images: np.ndarray, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
) -> Problem:
    """Returns the problem with random weights."""
    variables = models.random_variables(architecture)
    inputs = jax.ShapeDtypeStruct((1, *images.shape[1:]), "float32")
    layered = layered_network(*as_function(load_resnet(architecture, variables)), inputs)
    matrices = {f"{layer.name}.kernel" for layer in layered.layers if layer.kind == Kind.DENSE}
    return Problem(
        architecture=architecture,
        network=layered.layers,
        variables=variables,
        params={name: param[0, 0] if name in matrices else param for name, param in layered.params.items()},
        images=images,
        mean=mean,
        std=std,
    )


def resnet101(stem: str, images: np.ndarray) -> Problem:
    """Returns the problem of ResNet101 with this stem, as in its preset, with random weights."""
    model = default_model(stem)
    architecture = Architecture.resnet(model.depth, stem, model.num_classes)
    return make_problem(architecture, images, model.preprocessing.mean, model.preprocessing.std)
