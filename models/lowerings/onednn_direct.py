"""The lowering of a layer to one oneDNN call: convolution, bias, residual, activation and, of integers, scaling."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cambrian.models.lowerings.lowering import Call, Finish, Lowering
from cambrian.models.lowerings.onednn import TARGET, Convolution, obstacle
from cambrian.models.lowerings.onednn_forms import fused_activations


def _apply(x: jax.Array, kernel: Sequence[jax.Array], finish: Finish) -> jax.Array:
    call = finish.call
    # The sum over devices comes between products and bias.
    if call.summed:
        products = convolution_of(call)(x, kernel[0])
        return finish(products if call.is_integer else products.astype(jnp.float32))
    bias = finish.bias if call.is_integer else finish.bias.astype(call.out_dtype)
    operands = [bias] + ([] if finish.residual is None else [finish.residual])
    return convolution_of(call)(x, kernel[0], operands)


def convolution_of(call: Call) -> Convolution:
    """The call of oneDNN that computes all of a call, or its products alone if they are summed over devices."""
    following = _following(call)
    out_dtype = "int32" if call.summed and call.is_integer else call.out_dtype
    return Convolution(
        call.in_shape,
        call.out_channels,
        call.window,
        call.dtype,
        out_dtype=out_dtype,
        groups=call.groups,
        following=() if call.summed else following,
        factors=() if call.summed else call.scales[: following.count("LINEAR")],
    )


def _following(call: Call) -> tuple[str, ...]:
    """What follows the convolution, as `Convolution.following`.

    A ReLU of a uint8 result is left out: the result saturates at 0. The result of another activation is scaled before
    it is rounded to integers.
    """
    linear = ("LINEAR",) * call.is_integer
    operations = ("BIAS", *linear) + ("BINARY_ADD", *linear) * call.residual
    if call.activation is None or (call.activation, call.out_dtype) == ("RELU", "uint8"):
        return operations
    return (*operations, call.activation) + linear * (call.out_dtype in ("uint8", "int8"))


def _supports(call: Call) -> bool:
    return call.activation in (None, "RELU") or call.activation in fused_activations()


ONEDNN = Lowering(
    transform=lambda kernel: [kernel],
    apply=_apply,
    supports=_supports,
    pack=lambda kernel, call: convolution_of(call).pack(kernel),
    obstacle=obstacle,
    dtypes=("float32", "bfloat16", "uint8", "int8"),
    custom_call=TARGET,
    opaque=True,
    packed_bytes=lambda call: convolution_of(call).packed_bytes,
)
