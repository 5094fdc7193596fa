"""The convolution of oneDNN, which jaxlib for x86 carries and XLA offers as a custom call.

The target is internal to XLA: no version promises it, and an executable that holds it can't be serialized. So it is
used only where a probe has found that it computes a small convolution right.

oneDNN keeps kernels in blocks of output channels. Given one in another order, it reorders it at every launch, which
takes most of the time where images are few. So kernels are packed once, at build: (C_out / block, kh, kw, C_in / pair,
block, pair), where two bfloat16 values make a pair. oneDNN doesn't say which block it wants for a call; a probe finds
out, and where none of those known is right, the kernel stays as it is.
"""

import functools
import json
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from models.lowerings.direct import NATIVE
from models.lowerings.lowering import Call, Finish, Lowering, Window

_TARGET = "__onednn$convolution"
_BLOCKS = (64, 48, 32, 16)
# A packed kernel has a multiple of this many input channels; of others oneDNN pads them.
_IN_CHANNELS = {"float32": 1, "bfloat16": 32}


def _apply(x: jax.Array, kernel: Sequence[jax.Array], window: Window, finish: Finish) -> jax.Array:
    # A sum over devices stands between products and bias, and oneDNN rounds its result to the operands' type.
    if finish.summed:
        return finish(_convolve(x, kernel[0], window, finish.bias.shape[0], {}).astype(jnp.float32))
    following = {"BIAS": finish.bias.astype(x.dtype)}
    if finish.residual is not None:
        following["BINARY_ADD"] = finish.residual
    return _convolve(x, kernel[0], window, finish.bias.shape[0], following, finish.relu).astype(finish.dtype)


def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    window: Window,
    out_channels: int,
    following: Mapping[str, jax.Array],
    relu: bool = False,
) -> jax.Array:
    """The convolution and, in the same pass, the operations `following` with their operands, then the ReLU."""
    packed_shape = (window.size, window.size, x.shape[-1], out_channels) if kernel.ndim == 1 else None
    ops = [*following, *(["RELU"] if relu else [])]
    rows, columns = window.out_size(x.shape)
    return jax.ffi.ffi_call(
        _TARGET,
        jax.ShapeDtypeStruct((x.shape[0], rows, columns, out_channels), x.dtype),
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"onednn_conv_config": _configuration(window, ops, packed_shape)}),
    )(x, kernel, *following.values())


def _configuration(window: Window, ops: Sequence[str], packed_shape: tuple[int, ...] | None) -> dict:
    image = {"dims": "4", "data": {"batch_dim": "0", "feature_dim": "3", "spatial_dims": ["1", "2"]}}
    kernel: dict = {"input_feature_dim": "2", "output_feature_dim": "3", "spatial_dims": ["0", "1"]}
    if packed_shape:
        kernel["shape"] = [str(size) for size in packed_shape]
    return {
        "dims": "4",
        "feature_groups": "1",
        "input": image,
        "output": image,
        "kernel": {"dims": "4", "filter": kernel},
        "window": {
            "size": [],
            "pad_left": [str(before) for before, _ in window.padding],
            "pad_right": [str(after) for _, after in window.padding],
            "strides": [str(window.stride)] * 2,
            "window_dilations": ["1", "1"],
        },
        "fusions": {"ops": list(ops)},
        "optimization_config": {"weights_prepacked": packed_shape is not None},
    }


def _pack(kernel: np.ndarray, call: Call) -> np.ndarray:
    block = _block(call)
    return kernel if block is None else _packed(kernel, block)


def _packed(kernel: np.ndarray, block: int) -> np.ndarray:
    height, width, in_channels, out_channels = kernel.shape
    pair = 4 // kernel.dtype.itemsize
    blocks = -(-out_channels // block)
    padded = np.pad(kernel, ((0, 0), (0, 0), (0, 0), (0, blocks * block - out_channels)))
    parts = padded.reshape(height, width, in_channels // pair, pair, blocks, block)
    flat = parts.transpose(4, 0, 1, 2, 5, 3).reshape(-1)
    # As large as for any block: oneDNN would read beyond the end of a kernel packed for another.
    most = max(-(-out_channels // other) * other for other in _BLOCKS) * height * width * in_channels
    return np.pad(flat, (0, most - flat.size))


@functools.cache
def _block(call: Call) -> int | None:
    """The block of output channels that oneDNN wants for a call, by which one output pixel comes out right."""
    if call.in_shape[3] % _IN_CHANNELS[call.dtype]:
        return None
    random = np.random.default_rng(0)
    window = call.window
    kernel = random.integers(-2, 3, (window.size, window.size, call.in_shape[3], call.out_channels))
    kernel = kernel.astype(np.float32)
    image = random.integers(-2, 3, (1, *call.in_shape[1:])).astype(np.float32)
    row, column = (size // 2 for size in window.out_size(call.in_shape))
    padded = np.pad(image, ((0, 0), *window.padding, (0, 0)))[0]
    seen = padded[row * window.stride :, column * window.stride :][: window.size, : window.size]
    expected = np.tensordot(seen, kernel, 3)
    # Arrays of NumPy: JAX would compile a program to make each of another shape.
    images = np.zeros(call.in_shape, call.dtype)
    images[0] = image[0]
    following: dict[str, np.ndarray] = {} if call.summed else {"BIAS": np.zeros(call.out_channels, call.dtype)}
    if call.residual and not call.summed:
        shape = (call.in_shape[0], *window.out_size(call.in_shape), call.out_channels)
        following["BINARY_ADD"] = np.zeros(shape, call.dtype)
    relu = call.relu and not call.summed

    def apply(x: jax.Array, kernel: jax.Array, following: Mapping[str, jax.Array]) -> jax.Array:
        return _convolve(x, kernel, window, call.out_channels, following, relu)[0, row, column]

    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        apply = jax.jit(apply)
        for block in _BLOCKS:
            got = apply(images, _packed(kernel.astype(call.dtype), block), following)
            if np.allclose(np.asarray(got, np.float32), np.maximum(expected, 0) if relu else expected, 1e-2):
                return block
    return None


@functools.cache
def _obstacle(platform: str) -> str | None:
    if platform != "cpu":
        return f"oneDNN computes on cpu, not on {platform}"
    random = np.random.default_rng(0)
    images = random.standard_normal((2, 6, 6, 16), np.float32)
    kernel = random.standard_normal((3, 3, 16, 16), np.float32)
    window, bias = Window(3, 2, ((1, 1), (0, 1))), np.ones(16, np.float32)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        finish = Finish(jnp.asarray(bias), None, True, jnp.float32)
        expected = NATIVE.apply(jnp.asarray(images), [jnp.asarray(kernel)], window, finish)
        try:
            got = jax.jit(lambda x, k: _apply(x, [k], window, finish))(images, kernel)
        except Exception as error:  # an unknown target, another form of its configuration
            return f"XLA doesn't take the call: {str(error).splitlines()[0]}"
    return None if np.allclose(got, expected, rtol=1e-4, atol=1e-4) else "its result on the probe is wrong"


ONEDNN = Lowering(
    transform=lambda kernel: [kernel],
    apply=_apply,
    supports=lambda size, stride: True,
    pack=_pack,
    obstacle=_obstacle,
    custom_call=_TARGET,
)
