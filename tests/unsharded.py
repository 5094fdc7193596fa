"""The unsharded float32 ResNet, the reference of many tests, and a program on its mesh, to be compared with one."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.typing import ArrayLike

from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.flax_resnet import as_function, load_resnet
from cambrian.sharding import Program


def inference_function(
    architecture: Architecture, variables: Mapping[str, np.ndarray]
) -> Callable[[ArrayLike], jax.Array]:
    """Returns a function from normalised images (N, H, W, 3) float32 to logits (N, num_classes)."""
    function, params = as_function(load_resnet(architecture, variables))
    apply = jax.jit(function)
    return lambda images: apply(params, images)


def outputs_of(program: Program, images: np.ndarray) -> np.ndarray:
    """Returns the program's outputs on its mesh."""
    shardings = [spec.sharding(program.mesh) for spec in program.param_specs]
    params = jax.device_put(list(program.params), shardings)
    return np.asarray(jax.jit(program.apply)(params, jax.device_put(images, program.input_spec.sharding(program.mesh))))


def relative_error(got: ArrayLike, expected: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(got, np.float64) - expected) / np.linalg.norm(expected))
