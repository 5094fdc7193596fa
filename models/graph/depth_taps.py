"""A convolution along three axes as one along two: the images under the kernel's taps in depth are channels.

XLA:CPU computes convolutions along three axes by its own slow code (github.com/openxla/xla/issues/34273).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True, slots=True)
class DepthTaps:
    """Turns (N, D, H, W, C) into (N · D', H, W, taps · C): for each output in depth, the images that its taps read.

    Attributes:
      taps: size of the kernel in depth.
      stride, dilation: of the kernel in depth.
      padding: number of images of zeros before and after.
      outputs: number D' of outputs in depth.
    """

    taps: int
    stride: int
    dilation: int
    padding: tuple[int, int]
    outputs: int
    name = "depth_taps"

    @classmethod
    def of(cls, depth: int, taps: int, stride: int, padding: tuple[int, int], dilation: int) -> "DepthTaps":
        outputs = (depth + sum(padding) - dilation * (taps - 1) - 1) // stride + 1
        return cls(taps, stride, dilation, padding, outputs)

    def __call__(self, volumes: jax.Array) -> list[jax.Array]:
        padding = [(0, 0, 0), (*self.padding, 0), *[(0, 0, 0)] * 3]
        padded = lax.pad(volumes, jnp.zeros((), volumes.dtype), padding)
        firsts = range(0, self.taps * self.dilation, self.dilation)
        last = (self.outputs - 1) * self.stride
        read = [lax.slice_in_dim(padded, first, first + last + 1, self.stride, 1) for first in firsts]
        return [jnp.concatenate(read, -1).reshape(self.shape(volumes.shape))]

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the result for volumes of `shape`."""
        samples, _, rows, columns, channels = shape
        return samples * self.outputs, rows, columns, self.taps * channels

    def kernel(self, kernel: np.ndarray) -> np.ndarray:
        """Turns a kernel (taps, kh, kw, C_in, C_out) into (kh, kw, taps · C_in, C_out)."""
        _, height, width, in_channels, out_channels = kernel.shape
        return kernel.transpose(1, 2, 0, 3, 4).reshape(height, width, self.taps * in_channels, out_channels)
