"""ResNet in Flax NNX with torchvision's attribute names, used for training and as the reference of inference."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from cambrian.models.resnet.architecture import (
    BATCH_NORM_EPSILON,
    IMAGE_CHANNELS,
    STEM_KERNELS,
    Architecture,
    ResidualBlock,
    residual_blocks,
)
from cambrian.models.resnet.batch_norm import normalise_by_batch
from cambrian.models.resnet.variables import Variables, check_variables

# Initial value of the last scale of a block: blocks start as identities (Goyal et al., arXiv:1706.02677, section 5.1).
_LAST_SCALE = nnx.initializers.zeros


class ResNet(nnx.Module):
    """A ResNet v1.5 (He et al., arXiv:1512.03385, with the stride on the 3×3 convolution).

    Batch norms use and track the statistics of the batch until `model.eval()` is called. Variables, batch norms and the
    head are float32; convolutions and activations are of `dtype`.
    """

    def __init__(self, architecture: Architecture, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.architecture = architecture
        self.dtype = dtype
        stride = 2 if architecture.stem == "imagenet" else 1
        self.conv1 = _conv(IMAGE_CHANNELS, architecture.width, STEM_KERNELS[architecture.stem], stride, dtype, rngs)
        self.bn1 = BatchNorm(architecture.width, rngs)
        make_block = Bottleneck if architecture.bottleneck else BasicBlock
        blocks = list(residual_blocks(architecture))
        for stage in range(1, len(architecture.blocks) + 1):
            members = [make_block(block, dtype, rngs) for block in blocks if block.stage == stage]
            setattr(self, f"layer{stage}", nnx.List(members))
        self.fc = nnx.Linear(
            blocks[-1].out_channels, architecture.num_classes, precision=lax.Precision.HIGHEST, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps normalised images (N, H, W, 3) to logits (N, num_classes) float32."""
        x = nnx.relu(self.bn1(self.conv1(images.astype(self.dtype))))
        if self.architecture.stem == "imagenet":
            # Flax pads with -inf, and annotates the padding as a string only.
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        for stage in range(1, len(self.architecture.blocks) + 1):
            for block in getattr(self, f"layer{stage}"):
                x = block(x)
        return self.fc(x.mean((1, 2), dtype=jnp.float32))


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions with a skip connection."""

    def __init__(self, block: ResidualBlock, dtype: DTypeLike, rngs: nnx.Rngs):
        inner = block.inner_channels
        self.conv1 = _conv(block.in_channels, inner, 3, block.stride, dtype, rngs)
        self.bn1 = BatchNorm(inner, rngs)
        self.conv2 = _conv(inner, block.out_channels, 3, 1, dtype, rngs)
        self.bn2 = BatchNorm(block.out_channels, rngs, _LAST_SCALE)
        self.downsample = Downsample(block, dtype, rngs) if block.has_downsample else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return nnx.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nnx.Module):
    """A 1×1 convolution that narrows, a 3×3 and a 1×1 that widens fourfold, with a skip connection."""

    def __init__(self, block: ResidualBlock, dtype: DTypeLike, rngs: nnx.Rngs):
        inner = block.inner_channels
        self.conv1 = _conv(block.in_channels, inner, 1, 1, dtype, rngs)
        self.bn1 = BatchNorm(inner, rngs)
        self.conv2 = _conv(inner, inner, 3, block.stride, dtype, rngs)
        self.bn2 = BatchNorm(inner, rngs)
        self.conv3 = _conv(inner, block.out_channels, 1, 1, dtype, rngs)
        self.bn3 = BatchNorm(block.out_channels, rngs, _LAST_SCALE)
        self.downsample = Downsample(block, dtype, rngs) if block.has_downsample else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return nnx.relu(y + (x if self.downsample is None else self.downsample(x)))


class Downsample(nnx.Module):
    """The 1×1 convolution of a skip connection whose shape changes."""

    def __init__(self, block: ResidualBlock, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = _conv(block.in_channels, block.out_channels, 1, block.stride, dtype, rngs)
        self.bn = BatchNorm(block.out_channels, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.bn(self.conv(x))


class BatchNorm(nnx.BatchNorm):
    """A batch norm in float32 that returns its input's dtype; Flax's own rounds the statistics to that dtype."""

    def __init__(self, channels: int, rngs: nnx.Rngs, scale_init: nnx.Initializer = nnx.initializers.ones):
        super().__init__(
            channels, momentum=0.9, epsilon=BATCH_NORM_EPSILON, dtype=jnp.float32, scale_init=scale_init, rngs=rngs
        )

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        if nnx.module.first_from(use_running_average, self.use_running_average, error_msg="train() or eval() first"):
            return super().__call__(x, True, mask=mask).astype(x.dtype)
        assert self.scale is not None and self.bias is not None
        y, mean, var = normalise_by_batch(x, self.scale.get_value(), self.bias.get_value())
        for running, value in ((self.mean, mean), (self.var, var)):
            running.set_value(self.momentum * running.get_value() + (1 - self.momentum) * value)
        return y


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Conv:
    padding = (kernel - 1) // 2  # on every side, as in PyTorch; SAME would shift strided windows
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel, kernel),
        strides=stride,
        padding=((padding, padding), (padding, padding)),
        use_bias=False,
        dtype=dtype,
        precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,  # full float32, no TF32
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        rngs=rngs,
    )


def load_resnet(architecture: Architecture, variables: Variables, dtype: DTypeLike = jnp.float32) -> ResNet:
    """Returns a ResNet with these variables, without drawing random ones.

    Raises:
      UsageError: if a variable is missing, left over or of the wrong shape (names the variable).
    """
    model = abstract_resnet(architecture, dtype)
    load_variables(model, variables)
    return model


def abstract_resnet(architecture: Architecture, dtype: DTypeLike = jnp.float32) -> ResNet:
    """Returns a ResNet with abstract variables: shapes without values."""
    return nnx.eval_shape(lambda: ResNet(architecture, rngs=_OneKey(), dtype=dtype))


class _OneKey(nnx.Rngs):
    """Returns the same key for every variable of an abstract model; counting keys under a trace takes seconds."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


def load_variables(model: ResNet, variables: Variables) -> None:
    """Replaces all variables of `model` (see `models.resnet.variables`) by copies of `variables`.

    Raises:
      UsageError: if a variable is missing, left over or of the wrong shape (names the variable).
    """
    check_variables(model.architecture, variables)
    for name, variable in _variables_by_name(model).items():
        # A copy, which jnp.array would compile a program of each shape to make.
        variable.set_value(jax.device_put(np.array(variables[name], variable.get_value().dtype)))


def variables_of(model: ResNet) -> dict[str, np.ndarray]:
    """Copies all variables of `model` (see `models.resnet.variables`) to the host as float32."""
    return {name: np.array(variable.get_value(), np.float32) for name, variable in _variables_by_name(model).items()}


def _variables_by_name(model: ResNet) -> dict[str, nnx.Variable]:
    return {".".join(map(str, path)): node for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Variable)}


def as_function(model: ResNet) -> tuple[Callable[[Any, jax.Array], jax.Array], nnx.State]:
    """Returns a model in evaluation mode as a function, and its parameters.

    Returns:
      A function from parameters and normalised images (N, H, W, 3) to logits (N, num_classes) float32; and the
      parameters, whose paths are the names of the variables. They are abstract if the model is.
    """
    model.eval()
    graphdef, params = nnx.split(model)
    return lambda params, images: nnx.merge(graphdef, params)(images), params
