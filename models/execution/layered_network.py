"""A network as the layers that a plan cuts, with their weights."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np

from cambrian.sharding import Network


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LayeredNetwork:
    """A network for inference, on inputs (N, H, W, C).

    Attributes:
      layers: layers in the order of computation.
      params: `LAYER.kernel` (height, width, in, out) and `LAYER.bias` (out,) of each layer with weights, float32.
      prepare: function from inputs to the images that the first layer reads, elementwise.
    """

    layers: Network
    params: Mapping[str, np.ndarray]
    prepare: Callable[[jax.Array], jax.Array]
