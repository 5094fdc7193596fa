"""The networks: all of keras.applications, Haiku's, and small ones of other kinds in Flax, with random weights."""

import inspect
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.networks.cases import CASES

# Function of (parameters, inputs (N, …)), its parameters, and a sample's shape and dtype.
Network = tuple[Callable[[Any, jax.Array], jax.Array], Any, jax.ShapeDtypeStruct]

_SIZES = {"InceptionV3": 299, "InceptionResNetV2": 299, "Xception": 299, "NASNetLarge": 331}
_RANDOM = np.random.default_rng(0)


def names() -> list[str]:
    """All networks by name."""
    return [*_keras_names(), *_HAIKU, *_LINEN]


def make_network(name: str) -> Network:
    """Makes a network with random weights.

    Raises:
      ValueError: if the name is unknown.
    """
    if name in _LINEN:
        return _linen(name)
    if name in _HAIKU:
        return _haiku(name)
    if name in _keras_names():
        return _keras(name)
    raise ValueError(f"expected networks among {', '.join(names())}, got {name!r}")


def _applications() -> Any:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras  # pyright: ignore[reportMissingImports]

    return keras.applications


def _keras_names() -> list[str]:
    found = inspect.getmembers(_applications(), lambda value: inspect.isfunction(value))
    return [name for name, _ in found]


def _keras(name: str) -> Network:
    import keras  # pyright: ignore[reportMissingImports]

    make, size = getattr(_applications(), name), _SIZES.get(name, 224)
    keras.utils.set_random_seed(0)
    model = make(weights=None, input_shape=(size, size, 3), classifier_activation=None)
    for variable in model.variables:
        kind = variable.path.rsplit("/", 1)[-1]
        if "moving_var" in kind or kind == "gamma":
            variable.assign(_RANDOM.uniform(0.5, 1.5, variable.shape).astype(np.float32))
        elif "moving_mean" in kind or kind in ("beta", "bias"):
            variable.assign(0.1 * _RANDOM.standard_normal(variable.shape, np.float32))
    from cambrian.models.frameworks import as_function

    return *as_function(model, None), jax.ShapeDtypeStruct((size, size, 3), "float32")


def _haiku(name: str) -> Network:
    import haiku as hk  # pyright: ignore[reportMissingImports]

    def network(x: jax.Array) -> jax.Array:
        if name == "haiku.ResNet50":
            return hk.nets.ResNet50(1000)(x, is_training=hk.running_init())
        return hk.nets.MobileNetV1(num_classes=1000)(x, is_training=hk.running_init())

    from cambrian.models.frameworks import as_function

    transform, spec = hk.transform_with_state(network), jax.ShapeDtypeStruct((224, 224, 3), "float32")
    images = _RANDOM.standard_normal((2, *spec.shape), np.float32)  # the first averages of the batch norms are theirs
    variables = jax.jit(transform.init)(jax.random.key(0), images)
    return *as_function(transform, variables), spec


class UNet(nn.Module):
    """Ronneberger et al., arXiv:1505.04597, with half of its channels and group norms."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        skips = []
        for features in (32, 64, 128, 256):
            x = nn.relu(nn.GroupNorm(8)(nn.Conv(features, (3, 3))(x)))
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            skips.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(512, (3, 3))(x))
        for features, skip in zip((256, 128, 64, 32), reversed(skips), strict=True):
            x = jnp.concatenate([nn.ConvTranspose(features, (2, 2), strides=(2, 2))(x), skip], -1)
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.relu(nn.Conv(features, (3, 3))(x))
        return nn.Conv(2, (1, 1))(x)


class Transformer(nn.Module):
    """A small ViT on images (Dosovitskiy et al., arXiv:2010.11929), or a small GPT on tokens."""

    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.causal:
            mask = nn.make_causal_mask(x)
            x = nn.Embed(8192, 384)(x)
        else:
            mask = None
            x = nn.Conv(384, (16, 16), strides=16)(x)
            x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = x + self.param("position", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for _ in range(6):
            x = x + nn.MultiHeadDotProductAttention(6)(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(384)(nn.gelu(nn.Dense(1536)(nn.LayerNorm()(x))))
        x = nn.LayerNorm()(x)
        return nn.Dense(8192)(x) if self.causal else nn.Dense(1000)(x.mean(1))


class Mixer(nn.Module):
    """Tolstikhin et al., arXiv:2105.01601, S/16 with six blocks."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(512, (16, 16), strides=16)(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for _ in range(6):
            y = nn.LayerNorm()(x).swapaxes(1, 2)
            x = x + nn.Dense(y.shape[-1])(nn.gelu(nn.Dense(256)(y))).swapaxes(1, 2)
            x = x + nn.Dense(512)(nn.gelu(nn.Dense(2048)(nn.LayerNorm()(x))))
        return nn.Dense(1000)(nn.LayerNorm()(x).mean(1))


class Audio(nn.Module):
    """Dilated convolutions along time, as WaveNet's (van den Oord et al., arXiv:1609.03499)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(64, (9,), strides=4)(x)
        for dilation in (1, 2, 4, 8, 16, 32):
            y = nn.Conv(128, (3,), kernel_dilation=dilation)(x)
            gate, value = jnp.split(y, 2, axis=-1)
            x = x + nn.Conv(64, (1,))(nn.sigmoid(gate) * jnp.tanh(value))
        return nn.Dense(35)(nn.relu(x).mean(1))


_HAIKU = ("haiku.ResNet50", "haiku.MobileNetV1")
_LINEN: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "flax.UNet": (UNet(), (128, 128, 3), "float32"),
    "flax.ViT": (Transformer(causal=False), (224, 224, 3), "float32"),
    "flax.GPT": (Transformer(causal=True), (128,), "int32"),
    "flax.Mixer": (Mixer(), (224, 224, 3), "float32"),
    "flax.Audio": (Audio(), (16000, 1), "float32"),
    **{name: (module, shape, "float32") for name, (module, shape) in CASES.items()},
}


def _linen(name: str) -> Network:
    module, shape, dtype = _LINEN[name]
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *shape), dtype))
    apply: Any = module.apply
    return apply, variables, jax.ShapeDtypeStruct(shape, dtype)
