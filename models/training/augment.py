"""Augmentation of whole batches in JAX, on the device. Axes: N batch, H rows, W columns, C channels, K classes."""

import jax
import jax.numpy as jnp
from jax import lax


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Shifts images (N, H, W, C) randomly by up to `padding` pixels in each direction, with reflected edges."""
    _, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="reflect")
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)
    return jax.vmap(lambda image, at: lax.dynamic_slice(image, (at[0], at[1], 0), (height, width, channels)))(
        padded, offsets
    )


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Flips each of the images (N, H, W, C) left to right with probability 1/2."""
    flipped = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def cutout(key: jax.Array, images: jax.Array, size: int) -> jax.Array:
    """Sets a randomly centred square of `size` pixels of normalised images (N, H, W, C) to 0, the mean.

    The square may extend beyond the image (DeVries and Taylor, arXiv:1708.04552).
    """
    number, height, width, _ = images.shape
    rows, columns = jax.random.split(key)

    def inside(key: jax.Array, length: int) -> jax.Array:
        first = jax.random.randint(key, (number, 1), 0, length) - size // 2
        positions = jnp.arange(length)
        return (positions >= first) & (positions < first + size)

    square = inside(rows, height)[:, :, None, None] & inside(columns, width)[:, None, :, None]
    return jnp.where(square, jnp.zeros((), images.dtype), images)


def mixup(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Mixes images (N, H, W, C) and targets (N, K) with the reversed batch.

    The weight is shared by the batch and drawn from Beta(alpha, alpha) (Zhang et al., arXiv:1710.09412). Each image
    keeps the larger weight, so that accuracy can be measured by its own label.
    """
    weight = jax.random.beta(key, alpha, alpha)
    weight = jnp.maximum(weight, 1 - weight)
    return weight * images + (1 - weight) * images[::-1], weight * targets + (1 - weight) * targets[::-1]
