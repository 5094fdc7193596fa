"""Normalisation of pixels, the first operation of a classifier."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np


def normaliser(mean: Sequence[float], std: Sequence[float]) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that maps uint8 images (N, H, W, C) to float32: (images / 255 - mean) / std, per channel."""
    scale = np.asarray(1.0 / (255.0 * np.asarray(std)), np.float32)
    shift = np.asarray(-np.asarray(mean) / np.asarray(std), np.float32)
    scale, shift = scale[None, None, None], shift[None, None, None]  # users may have JAX refuse to add dimensions
    return lambda images: images.astype(jnp.float32) * scale + shift
