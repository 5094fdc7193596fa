"""Classifier: a user's own image classifier."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cambrian.commands.configuration import check_type
from cambrian.sharding import Preprocessing, UsageError


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """An image classifier: a JAX model, the preprocessing of its images, and its labels.

    Attributes:
      model: a Flax NNX, Equinox or Keras model; a Flax Linen module or a Haiku transform; or a function of (params,
        images). It takes images (N, H, W, 3) float32, normalised by the preprocessing's mean and standard deviation,
        and returns logits (N, classes). An Equinox model takes one image (H, W, 3) and returns its logits.
      params: parameters of a function, Linen module or Haiku transform: any pytree of arrays.
      preprocessing: how a picture becomes an image; by default as is usual for ImageNet: the shorter side is resized to
        256 pixels, and the centre of 224×224 taken.
      labels: class names in the order of the logits; empty if unknown.
      trained: whether the parameters are trained: runs report no accuracy of random ones.

    Raises:
      UsageError: if preprocessing, labels or trained has the wrong type.
    """

    model: Any = dataclasses.field(repr=False)
    params: Any = dataclasses.field(default=None, repr=False)
    preprocessing: Preprocessing = Preprocessing((224, 224), (256, 256))
    labels: tuple[str, ...] = ()
    trained: bool = True

    def __post_init__(self):
        check_type("preprocessing", self.preprocessing, Preprocessing)
        check_type("labels", self.labels, tuple)
        for label in self.labels:
            check_type("each label", label, str)
        check_type("trained", self.trained, bool)

    def as_function(self) -> tuple[Callable[[Any, jax.Array], jax.Array], Any]:
        """Returns the function of (params, pixels (N, H, W, 3) uint8) that gives logits (N, classes), and its params.

        Raises:
          UsageError: if the model isn't one, or its params are missing or superfluous; from the function, if the model
            returns something else than logits, or not one for each label.
        """
        from cambrian.models.frameworks import as_function
        from cambrian.models.normalise import normaliser  # a received artefact runs without models

        function, params = as_function(self.model, self.params)
        normalise = normaliser(self.preprocessing.mean, self.preprocessing.std)

        def classify(params: Any, pixels: jax.Array) -> jax.Array:
            logits = function(params, normalise(pixels))
            is_matrix = isinstance(logits, jax.Array) and logits.ndim == 2 and logits.shape[1]
            if not is_matrix or not jnp.issubdtype(logits.dtype, jnp.floating):
                got = f"{logits.shape} {logits.dtype}" if isinstance(logits, jax.Array) else type(logits).__name__
                raise UsageError(f"a classifier must return logits ({len(pixels)}, classes) of floats, got {got}")
            if self.labels and logits.shape[1] != len(self.labels):
                raise UsageError(f"labels must name all {logits.shape[1]} classes, got {len(self.labels)}")
            return logits.astype(jnp.float32)

        return classify, params

    def pixels(self, batch_size: int) -> jax.ShapeDtypeStruct:
        """Returns shape and dtype of the pixels of a launch."""
        return jax.ShapeDtypeStruct((batch_size, *self.preprocessing.size, 3), "uint8")
