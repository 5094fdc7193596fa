"""The unsharded float32 ResNet, the reference of many tests."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.typing import ArrayLike

from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.flax_resnet import as_function, load_resnet


def inference_function(
    architecture: Architecture, variables: Mapping[str, np.ndarray]
) -> Callable[[ArrayLike], jax.Array]:
    """Returns a function from normalised images (N, H, W, 3) float32 to logits (N, num_classes)."""
    function, params = as_function(load_resnet(architecture, variables))
    apply = jax.jit(function)
    return lambda images: apply(params, images)
