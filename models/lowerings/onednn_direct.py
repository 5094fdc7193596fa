"""The lowering of a layer to one oneDNN call: convolution, bias, residual and ReLU."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cambrian.models.lowerings.lowering import Call, Finish, Lowering, Window
from cambrian.models.lowerings.onednn import TARGET, Convolution, obstacle


def _apply(x: jax.Array, kernel: Sequence[jax.Array], window: Window, finish: Finish) -> jax.Array:
    has_residual, out_dtype = finish.residual is not None, str(np.dtype(finish.dtype))
    call = Call(
        x.shape, finish.bias.shape[0], window, str(x.dtype), out_dtype, has_residual, finish.relu, finish.summed
    )
    # The sum over devices comes between products and bias.
    if finish.summed:
        return finish(_convolution(call)(x, kernel[0]).astype(jnp.float32))
    operands = [finish.bias.astype(finish.dtype)] + ([] if finish.residual is None else [finish.residual])
    return _convolution(call)(x, kernel[0], operands)


def _convolution(call: Call) -> Convolution:
    following = ["BIAS"] + ["BINARY_ADD"] * call.residual + ["RELU"] * call.relu
    return Convolution(
        call.in_shape,
        call.out_channels,
        call.window,
        call.dtype,
        out_dtype=call.out_dtype,
        following=() if call.summed else tuple(following),
    )


def _pack(kernel: np.ndarray, call: Call) -> np.ndarray:
    return _convolution(call).pack(kernel)


ONEDNN = Lowering(
    transform=lambda kernel: [kernel],
    apply=_apply,
    supports=lambda size, stride: True,
    pack=_pack,
    obstacle=obstacle,
    custom_call=TARGET,
    opaque=True,
)
