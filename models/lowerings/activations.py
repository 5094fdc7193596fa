"""The activations that oneDNN fuses with a convolution, by its names for them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "RELU": jax.nn.relu,
    "RELU6": jax.nn.relu6,
    "SWISH": jax.nn.silu,
    "GELU_ERF": functools.partial(jax.nn.gelu, approximate=False),
    "GELU_TANH": functools.partial(jax.nn.gelu, approximate=True),
    "SIGMOID": jax.nn.sigmoid,
    "TANH": jnp.tanh,
    "ELU": jax.nn.elu,
}
