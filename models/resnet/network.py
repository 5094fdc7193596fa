"""The layers of a ResNet, read from its traced Flax model as from any other function."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cambrian.models.graph.read_layers import layered_network
from cambrian.models.resnet.architecture import IMAGE_CHANNELS, Architecture
from cambrian.models.resnet.flax_resnet import abstract_resnet, as_function
from cambrian.sharding import Kind, Network, UsageError


@functools.lru_cache(maxsize=64)
def network(architecture: Architecture, image_size: int | tuple[int, int], precision: str = "float32") -> Network:
    """Returns the layers of a ResNet, without knowing its weights.

    Args:
      architecture: architecture of the network.
      image_size: height and width of the images in pixels; one number for squares.
      precision: int8 for the layers of a ResNet that is quantised without regard to its accuracy.

    Raises:
      UsageError: if the image size is smaller than 1.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1:
        raise UsageError(f"the image size must be at least 1 pixel, got {image_size}")
    inputs = jax.ShapeDtypeStruct((1, height, width, IMAGE_CHANNELS), "float32")
    layers = layered_network(*_with_any_weights(architecture), inputs).layers
    if precision != "int8":
        return layers
    return tuple(
        dataclasses.replace(layer, quantized="uint8" if layer.input else "int8") if layer.kind == Kind.CONV else layer
        for layer in layers
    )


@functools.lru_cache(maxsize=8)
def _with_any_weights(architecture: Architecture) -> tuple[Callable[[Any, jax.Array], jax.Array], Any]:
    function, shapes = as_function(abstract_resnet(architecture))
    return function, jax.tree.map(lambda param: np.broadcast_to(np.ones((), param.dtype), param.shape), shapes)
