"""The convolution of oneDNN, which jaxlib for x86 contains and XLA exposes as a custom call.

The target is internal to XLA: no version guarantees it, and an executable that contains it can't be serialized. So it
is used only after a probe has computed small convolutions correctly.

oneDNN stores kernels in blocks of output channels and reorders a kernel in any other order at every launch, which takes
most of the time for small batches. So kernels are packed once, at build: (groups, C_out / block, kh, kw, C_in / pair,
block, pair), where two bfloat16 or four int8 values form a pair. oneDNN computes int8 images as uint8 ones with their
zero at 128: what corrects each output channel for this follows the kernel, in int32. oneDNN doesn't expose the block
size that it uses for a call. A probe finds it; if no known block size gives the correct result, the kernel isn't
packed.

oneDNN multiplies the pixels of one sample at a time by a kernel, which is slow if these are few. So a convolution of
single pixels, with a 1×1 kernel, is passed as that of one sample with all pixels in a row.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cambrian.models.lowerings.activations import ACTIVATIONS
from cambrian.models.lowerings.lowering import POINTWISE, ConvolutionSpec, Window, kernel_dtype

TARGET = "__onednn$convolution"
_BLOCKS = (64, 48, 32, 16)
# Kernels are packed only if their input channels are a multiple of this: oneDNN pads others.
_IN_CHANNELS = {"float32": 1, "bfloat16": 32, "uint8": 64, "int8": 64}
_ZERO_OF_INT8 = 128
_SUM_BYTES = 4  # of what corrects an output channel for that zero
_MOST_DRAWN = 1_000_003
_LEAST_COMPARED = 32  # values: one of few channels is right by chance with a wrong block size
_CHANNELS_OF_GROUP = 16  # likewise for the input and the output channels of each group


@dataclasses.dataclass(frozen=True, slots=True)
class Convolution(ConvolutionSpec):
    """One call: results of uint8 and int8 are rounded half to even and saturate.

    Attributes:
      following: operations fused after the convolution, in order: BIAS and BINARY_ADD, with an operand each, LINEAR,
        which multiplies by the next one of `factors`, and ACTIVATIONS.
      factors: of LINEAR.
    """

    following: tuple[str, ...] = ()
    factors: tuple[float, ...] = ()

    def __call__(self, images: jax.Array, kernel: jax.Array, operands: Sequence[jax.Array] = ()) -> jax.Array:
        """Computes (N, H', W', C_out) from a kernel of `kernel_shape` or from the result of `pack`."""
        if self.in_shape[:2] != (1, 1) and self.window.size == (1, 1) and self.window.padding == ((0, 0), (0, 0)):
            row = self._of_one_row()
            rows, columns = self.window.stride
            pixels = images[:, ::rows, ::columns].reshape(row.in_shape)
            operands = [x.reshape(row.out_shape) if x.ndim == len(row.out_shape) else x for x in operands]
            return row(pixels, kernel, operands).reshape(self.out_shape)
        configuration = self._configuration(packed=kernel.ndim == 1)
        return jax.ffi.ffi_call(
            TARGET,
            jax.ShapeDtypeStruct(self.out_shape, self.out_dtype),
            vmap_method="sequential",
            custom_call_api_version=2,
            legacy_backend_config=json.dumps({"onednn_conv_config": configuration}),
        )(images, kernel, *operands)

    def pack(self, kernel: np.ndarray) -> np.ndarray:
        """Packs a kernel of `kernel_shape` into oneDNN's order, in one dimension; returns it unchanged if unknown."""
        block = _block(dataclasses.replace(self, factors=()))
        return kernel if block is None else _packed(kernel, self, block)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the result of `pack`, wherever a block size is found for a kernel that can be packed."""
        height, width, in_channels, out_channels = self.kernel_shape
        column_bytes = height * width * in_channels * jnp.dtype(kernel_dtype(self.dtype)).itemsize
        if not self._can_pack:
            return out_channels * column_bytes
        # For the largest padding of any block: with another block oneDNN would read beyond the end.
        of_group = out_channels // self.groups
        widest = max(-(-of_group // block) * block for block in _BLOCKS) * self.groups
        return widest * (column_bytes + (_SUM_BYTES if self.dtype == "int8" else 0))

    def _of_one_row(self) -> "Convolution":
        """The convolution of single pixels that are all in one row."""
        pixels = math.prod(self.out_shape[:3])
        return dataclasses.replace(self, in_shape=(1, 1, pixels, self.in_shape[3]), window=POINTWISE)

    @property
    def _can_pack(self) -> bool:
        _, _, in_channels, out_channels = self.kernel_shape
        if in_channels % _IN_CHANNELS[self.dtype]:
            return False
        of_group = out_channels // self.groups
        return self.groups == 1 or not (in_channels % _CHANNELS_OF_GROUP or of_group % _CHANNELS_OF_GROUP)

    def _configuration(self, packed: bool) -> dict:
        image = {"dims": "4", "data": {"batch_dim": "0", "feature_dim": "3", "spatial_dims": ["1", "2"]}}
        kernel: dict = {"input_feature_dim": "2", "output_feature_dim": "3", "spatial_dims": ["0", "1"]}
        if packed:
            kernel["shape"] = [str(size) for size in self.kernel_shape]
        return {
            "dims": "4",
            "feature_groups": str(self.groups),
            "input": image,
            "output": image,
            "kernel": {"dims": "4", "filter": kernel},
            "window": {
                "size": [],
                "pad_left": [str(before) for before, _ in self.window.padding],
                "pad_right": [str(after) for _, after in self.window.padding],
                "strides": [str(stride) for stride in self.window.stride],
                "window_dilations": [str(dilation) for dilation in self.window.dilation],
            },
            "fusions": {"ops": list(self.following), "alpha": list(self.factors)},
            "optimization_config": {"weights_prepacked": packed},
        }


def _packed(kernel: np.ndarray, convolution: Convolution, block: int) -> np.ndarray:
    height, width, in_channels, _ = kernel.shape
    groups = convolution.groups
    by_group = kernel.reshape(height, width, in_channels, groups, -1)
    out_channels = by_group.shape[-1]
    pair = 4 // kernel.dtype.itemsize
    blocks = -(-out_channels // block)
    if missing := blocks * block - out_channels:
        by_group = np.pad(by_group, ((0, 0), (0, 0), (0, 0), (0, 0), (0, missing)))
    parts = by_group.reshape(height, width, in_channels // pair, pair, groups, blocks, block)
    flat = parts.transpose(4, 5, 0, 1, 2, 6, 3).reshape(-1)
    if convolution.dtype == "int8":
        sums = by_group.sum(axis=(0, 1, 2), dtype=np.int32)
        flat = np.concatenate([flat, (-_ZERO_OF_INT8 * sums).reshape(-1).view(np.int8)])
    missing = convolution.packed_bytes // flat.itemsize - flat.size
    return np.pad(flat, (0, missing)) if missing else flat


@functools.cache
def _block(convolution: Convolution) -> int | None:
    """Returns the block size that oneDNN uses for a call: the one that gives some output pixels correctly."""
    if not convolution._can_pack:
        return None
    probe = _Probe.of(convolution)
    draws = [probe.draw(seed) for seed in range(-(-_LEAST_COMPARED // convolution.out_channels))]
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        apply = jax.jit(probe.convolution.__call__)  # without indexing, which XLA would have to compile
        return next((block for block in _BLOCKS if all(probe.is_right(apply, block, *draw) for draw in draws)), None)


@dataclasses.dataclass(frozen=True, slots=True)
class _Probe:
    """A call on values that tell the right order of the kernel from any other: whatever follows, none saturates.

    Attributes:
      convolution: the call.
      unit: factor of the kernel in floating point, a power of two, so that products are exact.
    """

    convolution: Convolution
    unit: float

    @classmethod
    def of(cls, convolution: Convolution) -> "_Probe":
        # The sums of products of `draw` have about this standard deviation, which a unit brings to 1.
        unit = 2.0 ** -round(math.log2(3 * math.sqrt(math.prod(convolution.kernel_shape[:3]))))
        if not convolution.is_integer:
            return cls(convolution, unit)
        following = convolution.following
        factors = [1.0] * following.count("LINEAR")
        if following[-2:-1] and following[-2] in ACTIVATIONS and following[-1] == "LINEAR":
            factors[0], factors[-1] = unit, 64.0  # the activation of numbers around 1, which is rounded to an integer
        return cls(dataclasses.replace(convolution, factors=tuple(factors)), 1.0)

    def draw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns random images and a kernel of `kernel_shape`."""
        random, convolution = np.random.default_rng(seed), self.convolution
        # A prime number of random values, repeated: they lie nowhere as in the next row or block.
        size = min(math.prod(convolution.kernel_shape), _MOST_DRAWN)
        kernel = np.resize(random.integers(-2, 3, size).astype(np.float32), convolution.kernel_shape) * self.unit
        # NumPy arrays, as JAX would compile a program for each shape.
        images = np.zeros(convolution.in_shape, convolution.dtype)
        images[0] = random.integers(1, 4, convolution.in_shape[1:])  # zeros alone give zeros in any order
        return images, kernel

    def is_right(self, apply: Callable[..., jax.Array], block: int, images: np.ndarray, kernel: np.ndarray) -> bool:
        """Whether the kernel packed in blocks of this size gives output pixels correctly that read all its taps."""
        convolution = self.convolution
        packed = _packed(kernel.astype(kernel_dtype(convolution.dtype)), convolution, block)
        got = np.asarray(apply(images, packed, self._zeros()))[0]
        return all(
            np.allclose(
                got[row, column].astype(np.float32),
                output_pixel(images[0].astype(np.float32), kernel, convolution, row, column),
                rtol=1e-2,
                atol=5e-3,
            )
            for row, column in telling_pixels(convolution)
        )

    def _zeros(self) -> list[np.ndarray]:
        """The operands of what follows."""
        convolution = self.convolution
        shapes = {"BIAS": (convolution.out_channels,), "BINARY_ADD": convolution.out_shape}
        dtypes = {"BIAS": "float32", "BINARY_ADD": "uint8"}
        return [
            np.zeros(shapes[name], dtypes[name] if convolution.is_integer else convolution.out_dtype)
            for name in convolution.following
            if name in shapes
        ]


def telling_pixels(convolution: Convolution) -> list[tuple[int, int]]:
    """Output pixels (row, column) whose windows read, together, each tap of the kernel that any window reads."""
    window = convolution.window
    rows, columns = (
        _telling_positions(*sizes)
        for sizes in zip(
            convolution.out_shape[1:3],
            convolution.in_shape[1:3],
            window.size,
            window.stride,
            window.dilation,
            window.padding,
            strict=True,
        )
    )
    return [(row, column) for row in rows for column in columns]


def _telling_positions(
    outputs: int, inputs: int, taps: int, stride: int, dilation: int, padding: tuple[int, int]
) -> list[int]:
    """Such positions along one dimension, the middle first: mostly it alone."""

    def read(at: int) -> set[int]:
        return {tap for tap in range(taps) if 0 <= stride * at - padding[0] + dilation * tap < inputs}

    chosen = [outputs // 2]
    missing = set().union(*map(read, range(outputs))) - read(chosen[0])
    while missing:
        chosen.append(max(range(outputs), key=lambda at: len(read(at) & missing)))
        missing -= read(chosen[-1])
    return chosen


def output_pixel(
    image: np.ndarray,
    kernel: np.ndarray,
    convolution: Convolution,
    row: int,
    column: int,
    operands: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """Computes one output pixel (C_out,) of an image (H, W, C_in) in NumPy.

    Args:
      operands: those of `following` for this pixel, each (C_out,); none for zeros.
    """
    window, groups = convolution.window, convolution.groups
    padded = np.pad(image, (*window.padding, (0, 0)))
    rows, columns = (
        slice(stride * at, stride * at + dilation * (size - 1) + 1, dilation)
        for at, size, stride, dilation in zip((row, column), window.size, window.stride, window.dilation, strict=True)
    )
    seen = padded[rows, columns]
    parts = zip(np.split(seen, groups, axis=2), np.split(kernel, groups, axis=3), strict=True)
    pixel = np.concatenate([np.tensordot(part, kernel_part, 3) for part, kernel_part in parts])
    factors, added = iter(convolution.factors), iter(operands)
    for name in convolution.following:
        if name in ("BIAS", "BINARY_ADD"):
            pixel = pixel + next(added, np.float32(0))
        elif name == "LINEAR":
            pixel = pixel * next(factors)
        elif name in ACTIVATIONS:
            pixel = np.asarray(jax.jit(ACTIVATIONS[name])(pixel))
    if convolution.out_dtype not in ("uint8", "int8"):
        return pixel
    limits = np.iinfo(convolution.out_dtype)
    return np.clip(np.rint(pixel), limits.min, limits.max)


@functools.cache
def obstacle(platform: str) -> str | None:
    """Returns why oneDNN can't be called on this platform with this version of jaxlib; None if it can."""
    if platform != "cpu":
        return f"oneDNN runs on cpu, not on {platform}"
    random = np.random.default_rng(0)
    for groups in (1, 2):
        window = Window.square(3, 2, ((1, 1), (0, 1)))
        convolution = Convolution((2, 6, 6, 16 * groups), 16 * groups, window, "float32", "float32", groups, ("RELU",))
        images = random.standard_normal(convolution.in_shape, np.float32)
        kernel = random.standard_normal(convolution.kernel_shape, np.float32)
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            try:
                got = np.asarray(jax.jit(lambda x, k, call=convolution: call(x, k))(images, kernel))
            except Exception as error:  # an unknown target, or another form of its configuration
                return f"XLA rejects the call: {str(error).splitlines()[0]}"
        for image, row, column in np.ndindex(got.shape[:3]):
            expected = output_pixel(images[image], kernel, convolution, row, column)
            if not np.allclose(got[image, row, column], expected, rtol=1e-4, atol=1e-4):
                return "the probe gave a wrong result"
    return None
