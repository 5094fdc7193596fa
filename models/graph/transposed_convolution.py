"""A transposed convolution as an ordinary one: its outputs at distance s, for each of s phases, are channels.

XLA:CPU computes it on a grid that is mostly zeros. For one axis, dilation s of the images and padding p before, output
o = s q + r reads only the taps i = i_r + s t of the kernel, where i_r = (p - r) mod s, from pixel q + t + d_r, where
d_r = (r + i_r - p) / s. So all phases r together are a convolution of the undilated images with s times the
channels.
"""

import dataclasses

import jax
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True, slots=True)
class Crop:
    """The first elements along each dimension."""

    sizes: tuple[int, ...]
    name = "crop"

    def __call__(self, array: jax.Array) -> list[jax.Array]:
        return [lax.slice(array, (0,) * len(self.sizes), self.sizes)]


@dataclasses.dataclass(frozen=True, slots=True)
class Phases:
    """One axis of a transposed convolution.

    Attributes:
      kernel: (phase, tap of the ordinary convolution) → tap of the kernel; what is missing is zero.
      taps: size of the ordinary kernel.
      padding: padding of the images before and after.
      outputs: number of outputs of each phase.
    """

    kernel: dict[tuple[int, int], int]
    taps: int
    padding: tuple[int, int]
    outputs: int

    @classmethod
    def of(cls, length: int, size: int, dilation: int, padding: tuple[int, int]) -> "Phases | None":
        """The phases of an axis; None where images would have to be cut off."""
        before, after = padding
        outputs = -(-((length - 1) * dilation + 1 + before + after - size + 1) // dilation)
        firsts = [(before - phase) % dilation for phase in range(dilation)]
        shifts = [(phase + first - before) // dilation for phase, first in enumerate(firsts)]
        lowest = min(shifts)
        kernel = {
            (phase, shift - lowest + number): tap
            for phase, (first, shift) in enumerate(zip(firsts, shifts, strict=True))
            for number, tap in enumerate(range(first, size, dilation))
        }
        taps = 1 + max(tap for _, tap in kernel)
        pads = -lowest, outputs + taps - 1 - length + lowest
        return None if min(pads) < 0 else cls(kernel, taps, pads, outputs)


def kernel_of_phases(kernel: np.ndarray, rows: Phases, columns: Phases, dilation: tuple[int, int]) -> np.ndarray:
    """Turns a kernel (kh, kw, C_in, C_out) into (th, tw, C_in, dh · dw · C_out)."""
    by_phase = np.zeros((rows.taps, columns.taps, kernel.shape[2], *dilation, kernel.shape[3]), kernel.dtype)
    for (row_phase, row), i in rows.kernel.items():
        for (column_phase, column), j in columns.kernel.items():
            by_phase[row, column, :, row_phase, column_phase] = kernel[i, j]
    return by_phase.reshape(*by_phase.shape[:3], -1)
