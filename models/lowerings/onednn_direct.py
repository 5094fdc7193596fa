"""The lowering of a layer to one oneDNN call: convolution, bias, residual, activation and, of integers, scaling."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cambrian.models.lowerings.lowering import Call, Finish, Lowering, kernel_dtype
from cambrian.models.lowerings.onednn import TARGET, Convolution, fused_after, obstacle
from cambrian.models.lowerings.onednn_forms import fused_activations


def _apply(x: jax.Array, kernel: Sequence[jax.Array], finish: Finish) -> jax.Array:
    call = finish.call
    # The sum over devices comes between products and bias.
    if call.summed:
        products = _convolution(call)(x, kernel[0])
        return finish(products if _is_integer(call) else products.astype(jnp.float32))
    bias = finish.bias if _is_integer(call) else finish.bias.astype(call.out_dtype)
    operands = [bias] + ([] if finish.residual is None else [finish.residual])
    return _convolution(call, finish.scales)(x, kernel[0], operands)


def _convolution(call: Call, scales: Sequence[float] = (1.0, 1.0)) -> Convolution:
    following = fused_after(call.dtype, call.out_dtype, call.residual, call.activation)
    out_dtype = "int32" if call.summed and _is_integer(call) else call.out_dtype
    return Convolution(
        call.in_shape,
        call.out_channels,
        call.window,
        call.dtype,
        out_dtype=out_dtype,
        groups=call.groups,
        following=() if call.summed else following,
        factors=() if call.summed else tuple(scales[: following.count("LINEAR")]),
    )


def _is_integer(call: Call) -> bool:
    return kernel_dtype(call.dtype) == "int8"


def _supports(call: Call) -> bool:
    return call.activation in (None, "RELU") or call.activation in fused_activations()


def _pack(kernel: np.ndarray, call: Call) -> np.ndarray:
    return _convolution(call).pack(kernel)


ONEDNN = Lowering(
    transform=lambda kernel: [kernel],
    apply=_apply,
    supports=_supports,
    pack=_pack,
    obstacle=obstacle,
    dtypes=("float32", "bfloat16", "uint8", "int8"),
    custom_call=TARGET,
    opaque=True,
    packed_bytes=lambda call: _convolution(call).packed_bytes,
)
