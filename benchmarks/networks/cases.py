"""Operations that users of JAX report as slow on CPU: each alone, and in a network where the others have none."""

import flax.linen as nn
import jax
from jax import lax


class Loop(nn.Module):
    """Applies one convolution several times in the body of a loop (github.com/jax-ml/jax/issues/12868)."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.he_normal(), (3, 3, self.features, self.features))

        def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return nn.relu(y), None

        return lax.scan(step, x, None, length=8)[0]


class Recurrent(nn.Module):
    """A classifier with such a loop between its stem and its head."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(64, (3, 3), strides=2)(x))
        return nn.Dense(10)(Loop(64)(x).mean((1, 2)))


class Video(nn.Module):
    """A small network of convolutions along three axes (github.com/openxla/xla/issues/34273)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in (16, 32, 64):
            x = nn.relu(nn.Conv(features, (3, 3, 3), strides=(1, 2, 2))(x))
        return nn.Dense(10)(x.mean((1, 2, 3)))


class LargeKernels(nn.Module):
    """Blocks of depthwise convolutions whose kernels are larger than their images."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(64, (4, 4), strides=4)(x)
        for _ in range(3):
            y = nn.Conv(64, (13, 13), feature_group_count=64)(x)
            x = x + nn.Dense(64)(nn.gelu(nn.Dense(256)(y)))
        return nn.Dense(10)(x.mean((1, 2)))


# Name → module, shape of a sample.
CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "case.depthwise": (nn.Conv(144, (3, 3), feature_group_count=144), (56, 56, 144)),  # jax issue 23713
    "case.transposed": (nn.ConvTranspose(32, (4, 4), strides=(2, 2)), (64, 64, 64)),  # jax issue 23783
    "case.1d": (nn.Conv(64, (9,)), (4096, 64)),  # jax issue 29875
    "case.3d": (nn.Conv(32, (3, 3, 3)), (16, 32, 32, 16)),
    "case.loop": (Loop(64), (28, 28, 64)),
    "case.large_kernel": (nn.Conv(64, (15, 15)), (8, 8, 64)),
    "case.Recurrent": (Recurrent(), (32, 32, 3)),
    "case.Video": (Video(), (16, 64, 64, 3)),
    "case.LargeKernels": (LargeKernels(), (32, 32, 3)),
}
