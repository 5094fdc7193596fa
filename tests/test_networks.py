"""Networks of many families, with tiny widths: the rewritten graph gives what JAX gives, and takes their layers."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cambrian.models.graph.passes import optimized
from cambrian.models.graph.precision import in_bfloat16
from cambrian.models.graph.scan import nodes_and_repetitions
from cambrian.models.graph.trace import trace

IMAGES, SOUND, TOKENS = (12, 12, 3), (24, 3), (8,)
NORM = functools.partial(nn.BatchNorm, use_running_average=True)


class Network(nn.Module):
    body: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x):
        return self.body(x)


def conv(x, features, size=3, act=nn.relu, **more):
    return act(NORM()(nn.Conv(features, (size,) * (x.ndim - 2), use_bias=False, **more)(x)))


def head(x):
    return nn.Dense(5)(x.mean(axis=tuple(range(1, x.ndim - 1))))


def identity(x):
    return x


def depthwise(x, size=3, act=nn.relu, **more):
    return conv(x, x.shape[-1], size, act, feature_group_count=x.shape[-1], **more)


def squeeze_and_excite(x, gate=nn.sigmoid, act=nn.relu):
    y = x.mean((1, 2), keepdims=True)
    return x * gate(nn.Conv(x.shape[-1], (1, 1))(act(nn.Conv(4, (1, 1))(y))))


def vgg(x):
    x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    return nn.Dense(5)(nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1))))


def alexnet(x):
    x = nn.max_pool(nn.relu(nn.Conv(8, (5, 5), strides=2)(x)), (3, 3), (2, 2))
    return head(nn.relu(nn.Conv(16, (3, 3), feature_group_count=2)(x)))


def resnet(x, groups=1, squeeze=False, act=nn.relu):
    padding: Any = ((1, 1), (1, 1))  # annotated as a string
    x = nn.max_pool(conv(x, 8, 7, act, strides=2), (3, 3), (2, 2), padding)
    for features, stride in ((16, 1), (32, 2)):
        y = conv(conv(x, 8, 1, act), 8, 3, act, strides=stride, feature_group_count=groups)
        y = conv(y, features, 1, identity)
        y = squeeze_and_excite(y) if squeeze else y
        x = act(y + conv(x, features, 1, identity, strides=stride))
    return head(x)


def resnet_v2(x):
    x = nn.Conv(8, (3, 3))(x)
    for _ in range(2):
        y = nn.Conv(8, (3, 3))(nn.relu(NORM()(x)))
        x = x + nn.Conv(8, (3, 3))(nn.relu(NORM()(y)))
    return head(nn.relu(NORM()(x)))


def densenet(x):
    x = conv(x, 8)
    for _ in range(3):
        x = jnp.concatenate([x, nn.Conv(4, (3, 3))(nn.relu(NORM()(x)))], -1)
    return head(nn.avg_pool(nn.Conv(8, (1, 1))(nn.relu(NORM()(x))), (2, 2), (2, 2)))


def inception(x):
    pooled = nn.avg_pool(x, (3, 3), (1, 1), "SAME")
    branches = [conv(x, 4, 1), conv(conv(x, 4, 1), 4, 3), conv(pooled, 4, 1)]
    y = nn.relu(NORM()(nn.Conv(4, (1, 7))(nn.Conv(4, (7, 1))(x))))
    return head(jnp.concatenate([*branches, y], -1))


def xception(x):
    x = conv(x, 8, strides=2, padding="VALID")
    y = depthwise(nn.relu(x), act=identity)
    return head(nn.max_pool(conv(y, 16, 1, identity), (3, 3), (2, 2), "SAME") + conv(x, 16, 1, identity, strides=2))


def squeezenet(x):
    x = nn.relu(nn.Conv(4, (1, 1))(nn.Conv(8, (3, 3), strides=2)(x)))
    x = jnp.concatenate([nn.relu(nn.Conv(8, (1, 1))(x)), nn.relu(nn.Conv(8, (3, 3))(x))], -1)
    return nn.relu(nn.Conv(5, (1, 1))(x)).mean((1, 2))


def mobilenet_v1(x):
    for features in (8, 16):
        x = conv(depthwise(conv(x, features, act=nn.relu6), act=nn.relu6, strides=2), features, 1, nn.relu6)
    return head(x)


def mobilenet_v2(x):
    x = conv(x, 8, act=nn.relu6, strides=2)
    for _ in range(2):
        x = x + conv(depthwise(conv(x, 24, 1, nn.relu6), act=nn.relu6), 8, 1, identity)
    return head(x)


def mobilenet_v3(x):
    y = depthwise(conv(x, 16, act=nn.hard_swish, strides=2), 5, nn.hard_swish)
    y = conv(squeeze_and_excite(y, nn.hard_sigmoid), 8, 1, identity)
    return nn.Dense(5)(nn.hard_swish(nn.Dense(16)(y.mean((1, 2)))))


def efficientnet(x):
    x = conv(x, 8, act=nn.silu, strides=2)
    y = squeeze_and_excite(depthwise(conv(x, 24, 1, nn.silu), 5, nn.silu), act=nn.silu)
    return head(x + conv(y, 8, 1, identity))


def shufflenet(x):
    x = conv(conv(x, 8), 16, 1, feature_group_count=2)
    x = x.reshape(*x.shape[:3], 2, 8).swapaxes(3, 4).reshape(x.shape)
    left, right = jnp.split(x, 2, -1)
    return head(jnp.concatenate([left, conv(depthwise(right, act=identity), 8, 1)], -1))


def ghostnet(x):
    x = conv(x, 8)
    return head(jnp.concatenate([x, depthwise(x)], -1))


def convnext(x):
    x = nn.LayerNorm()(nn.Conv(8, (4, 4), strides=4)(x))
    y = nn.LayerNorm(epsilon=1e-6)(nn.Conv(8, (7, 7), feature_group_count=8)(x))
    scale = Scale()
    return head(x + scale(nn.Dense(8)(nn.gelu(nn.Dense(32)(y), approximate=False))))


class Scale(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.normal(1.0), (x.shape[-1],))


class Standardised(nn.Module):
    """A convolution with standardised weights, as NFNets have."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.he_normal(), (3, 3, x.shape[-1], 8))
        kernel = (kernel - kernel.mean((0, 1, 2))) * lax.rsqrt(kernel.var((0, 1, 2)) * 9 * x.shape[-1] + 1e-4)
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def nfnet(x):
    x = Standardised()(x)
    return head(x + 0.2 * Standardised()(nn.gelu(x * 0.9) * 1.7))


def repvgg(x):
    return head(nn.relu(conv(x, 8, 3, identity) + conv(x, 8, 1, identity)))


def convmixer(x):
    x = NORM()(nn.gelu(nn.Conv(8, (3, 3), strides=3)(x)))
    x = x + NORM()(nn.gelu(nn.Conv(8, (5, 5), feature_group_count=8)(x)))
    return head(NORM()(nn.gelu(nn.Conv(8, (1, 1))(x))))


def mixer(x):
    x = nn.Conv(8, (4, 4), strides=4)(x).reshape(x.shape[0], 9, 8)
    y = nn.LayerNorm()(x).swapaxes(1, 2)
    x = x + nn.Dense(9)(nn.gelu(nn.Dense(16)(y))).swapaxes(1, 2)
    return head(x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x)))))


def attention_block(x, mask=None):
    x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x), mask=mask)
    return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))


def vit(x):
    x = nn.Conv(8, (4, 4), strides=4)(x).reshape(x.shape[0], 9, 8)
    return nn.Dense(5)(attention_block(x)[:, 0])


def swin(x):
    """Attention within windows of 2×2 patches, after a cyclic shift."""
    x = jnp.roll(nn.Conv(8, (3, 3), strides=3)(x), (1, 1), (1, 2))
    windows = x.reshape(-1, 2, 2, 2, 2, 8).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)
    return head(attention_block(windows).reshape(x.shape[0], -1, 8))


def gpt(tokens):
    embed = nn.Embed(11, 8)
    x = attention_block(embed(tokens), nn.make_causal_mask(tokens))
    return embed.attend(nn.LayerNorm()(x))


def llama(tokens):
    """Rotary positions, RMS norm, and a gated layer."""
    x = nn.Embed(11, 8)(tokens)
    y = nn.RMSNorm()(x)
    q, k, v = (nn.DenseGeneral((2, 4), use_bias=False)(y) for _ in range(3))
    angles = jnp.arange(8.0)[:, None, None] * 10.0 ** -jnp.arange(2.0)
    q, k = (rotated(each, angles) for each in (q, k))
    weights = jnp.where(jnp.tri(8, dtype=bool), jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2, -1e9)
    x = x + nn.DenseGeneral(8, (-2, -1))(jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(weights), v))
    y = nn.RMSNorm()(x)
    return nn.Dense(11)(x + nn.Dense(8)(nn.silu(nn.Dense(16)(y)) * nn.Dense(16)(y)))


def rotated(x, angles):
    left, right = jnp.split(x, 2, -1)
    return jnp.concatenate(
        [left * jnp.cos(angles) - right * jnp.sin(angles), left * jnp.sin(angles) + right * jnp.cos(angles)], -1
    )


def mlp(tokens):
    x = jax.nn.one_hot(tokens, 11).reshape(tokens.shape[0], -1)
    return nn.Dense(5)(nn.elu(NORM()(nn.Dense(16)(x))))


def lstm(x):
    states: Any = nn.RNN(nn.OptimizedLSTMCell(8))(nn.relu(nn.Conv(8, (3,))(x)))
    return nn.Dense(5)(states[:, -1])


def wavenet(x):
    x = nn.Conv(8, (1,))(x)
    for dilation in (1, 2, 4):
        gate, value = jnp.split(nn.Conv(16, (2,), kernel_dilation=dilation, padding="CAUSAL")(x), 2, -1)
        x = x + nn.Conv(8, (1,))(nn.sigmoid(gate) * nn.tanh(value))
    return head(x)


def audio(x):
    x = nn.leaky_relu(conv(x, 8, 9, identity, strides=4))
    return head(nn.GroupNorm(2)(depthwise(x, 3, nn.silu)))


def unet(x):
    down = nn.relu(nn.GroupNorm(2)(nn.Conv(8, (3, 3))(x)))
    y = nn.relu(nn.Conv(16, (3, 3))(nn.max_pool(down, (2, 2), (2, 2))))
    y = nn.ConvTranspose(8, (2, 2), strides=(2, 2))(y)
    return nn.Conv(2, (1, 1))(conv(jnp.concatenate([y, down], -1), 8))


def segmentation(x):
    """Dilated convolutions, and a bilinear resize, as DeepLab has."""
    y = conv(x, 8, strides=2)
    pyramid = [conv(y, 4, kernel_dilation=rate) for rate in (1, 2, 4)]
    y = nn.Conv(2, (1, 1))(jnp.concatenate(pyramid, -1))
    return jax.image.resize(y, (*x.shape[:3], 2), "bilinear")


def super_resolution(x):
    y = nn.relu(nn.Conv(12, (3, 3))(x))
    y = nn.Conv(12, (3, 3))(y).reshape(*x.shape[:3], 2, 2, 3)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], 24, 24, 3)


def generator(x):
    """A DCGAN's, from one vector for each sample."""
    y = nn.relu(NORM()(nn.Dense(3 * 3 * 8)(x.mean((1, 2))).reshape(-1, 3, 3, 8)))
    y = nn.relu(NORM()(nn.ConvTranspose(8, (4, 4), strides=(2, 2))(y)))
    return nn.tanh(nn.ConvTranspose(3, (5, 5), strides=(2, 2))(y))


def autoencoder(x):
    y = nn.Conv(8, (3, 3), strides=2)(x)
    mean, deviation = jnp.split(nn.Conv(8, (3, 3), strides=2)(nn.relu(y)), 2, -1)
    y = mean + 0.1 * nn.softplus(deviation)
    return nn.sigmoid(nn.ConvTranspose(3, (4, 4), strides=(4, 4))(y))


def style(x):
    """Instance norms and reflected borders."""
    y = nn.Conv(8, (3, 3), padding="VALID")(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect"))
    y = nn.relu((y - y.mean((1, 2), keepdims=True)) * lax.rsqrt(y.var((1, 2), keepdims=True) + 1e-5))
    return nn.Conv(3, (3, 3), kernel_dilation=2)(jnp.repeat(jnp.repeat(y, 2, 1), 2, 2))


def video(x):
    x = x.reshape(x.shape[0], 4, 6, 6, 3)
    x = nn.max_pool(conv(x, 8, strides=(1, 2, 2)), (2, 1, 1), (2, 1, 1))
    return head(conv(x, 8, kernel_dilation=(2, 1, 1)))


def graph_network(x):
    """A graph convolution over the pixels of a row, whose edges are a parameter."""
    nodes = x[:, 0]
    edges = nn.softmax(Scale()(jnp.eye(12)))
    return head(nn.relu(jnp.einsum("ij,njc->nic", edges, nn.Dense(8)(nodes))))


def in_bfloat16_itself(x):
    """A network that computes in bfloat16, with norms in float32, as Flax's examples do."""
    narrow = {"dtype": jnp.bfloat16}
    for features in (8, 16):
        y = nn.relu(NORM(**narrow)(nn.Conv(features, (3, 3), use_bias=False, **narrow)(x)))
        x = y + nn.Dense(features, **narrow)(nn.gelu(nn.LayerNorm(**narrow)(y)))
    return nn.Dense(5, **narrow)(x.mean((1, 2))).astype(jnp.float32)


# Bodies on images, all of which is taken.
TAKEN = [
    *(vgg, alexnet, resnet, resnet_v2, densenet, inception, xception, squeezenet, mobilenet_v1, mobilenet_v2),
    *(mobilenet_v3, efficientnet, shufflenet, ghostnet, convnext, nfnet, repvgg, convmixer, mixer, unet, segmentation),
    *(super_resolution, generator, autoencoder, style, video, graph_network, in_bfloat16_itself),
    *(functools.partial(resnet, groups=4), functools.partial(resnet, squeeze=True, act=nn.silu)),
]
# Body, its inputs, and what is left to JAX: products of two activations.
OTHERS = [
    *[(body, IMAGES, ["dot_general"] * 2) for body in (vit, swin)],
    *[(body, TOKENS, ["dot_general"] * 2) for body in (gpt, llama)],
    *[(body, SOUND, []) for body in (wavenet, audio)],
    (mlp, TOKENS, []),
    (lstm, SOUND, []),
]
HEAVY = ("conv_general_dilated", "dot_general", "while", "scan")


def name(body: Any) -> str:
    if isinstance(body, functools.partial):
        return " ".join([body.func.__name__, *body.keywords])
    return getattr(body, "__name__", "")


@pytest.mark.parametrize(("body", "sample", "left"), [*[(body, IMAGES, []) for body in TAKEN], *OTHERS], ids=name)
def test_a_rewritten_network_gives_what_jax_gives(body, sample, left):
    module, random = Network(body), np.random.default_rng(0)
    shape = (2, *sample)
    x = random.integers(0, 11, shape, np.int32) if sample == TOKENS else random.standard_normal(shape, np.float32)
    with jax.numpy_dtype_promotion("standard"):  # Flax's norms in bfloat16 need it
        check(module, x, left, random)


def check(module: Network, x: np.ndarray, left: list[str], random: np.random.Generator) -> None:
    abstract = jax.eval_shape(module.init, jax.random.key(0), x)
    variables = jax.tree.map_with_path(lambda path, leaf: drawn(path[-1].key, leaf.shape, random), abstract)
    traced, _ = trace(module.apply, variables, x)
    wide = optimized(traced)
    assert [node.name for node, _ in nodes_and_repetitions(wide) if node.name in HEAVY] == left
    graphs = (wide, in_bfloat16(wide))

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def compute(x):
        constants = [{constant: constant.array for constant in graph.constants()} for graph in graphs]
        rewritten = [graph.evaluate(known, [x])[0] for graph, known in zip(graphs, constants, strict=True)]
        return module.apply(variables, x), *rewritten

    expected, *results = (np.asarray(output, np.float64) for output in compute(x))
    for got, tolerance in zip(results, (2e-2 if module.body is in_bfloat16_itself else 1e-5, 2e-2), strict=True):
        assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


def drawn(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if name in ("scale", "var"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    deviation = 0.1 if name in ("bias", "mean") else np.prod(shape[:-1]) ** -0.5
    return (deviation * random.standard_normal(shape)).astype(np.float32)
