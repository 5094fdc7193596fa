"""The convolution of oneDNN, which jaxlib for x86 carries and XLA offers as a custom call.

The target is internal to XLA: no version promises it, and an executable that holds it can't be serialized. So it is
used only where a probe has found that it computes a small convolution right.
"""

import functools
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from models.lowerings.direct import NATIVE
from models.lowerings.lowering import Finish, Lowering, Window

_TARGET = "__onednn$convolution"


def _apply(x: jax.Array, kernel: Sequence[jax.Array], window: Window, finish: Finish) -> jax.Array:
    # A sum over devices stands between products and bias, and oneDNN rounds its result to the operands' type.
    fused = not finish.summed
    operands, ops = [x, kernel[0]], []
    if fused:
        operands.append(finish.bias.astype(x.dtype))
        ops.append("BIAS")
        if finish.residual is not None:
            operands.append(finish.residual)
            ops.append("BINARY_ADD")
        if finish.relu:
            ops.append("RELU")
    rows, columns = window.out_size(x.shape)
    y = jax.ffi.ffi_call(
        _TARGET,
        jax.ShapeDtypeStruct((x.shape[0], rows, columns, kernel[0].shape[-1]), x.dtype),
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"onednn_conv_config": _configuration(window, ops)}),
    )(*operands)
    return y.astype(finish.dtype) if fused else finish(y.astype(jnp.float32))


def _configuration(window: Window, ops: Sequence[str]) -> dict:
    image = {"dims": "4", "data": {"batch_dim": "0", "feature_dim": "3", "spatial_dims": ["1", "2"]}}
    kernel = {"input_feature_dim": "2", "output_feature_dim": "3", "spatial_dims": ["0", "1"]}
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
    }


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
    obstacle=_obstacle,
    custom_call=_TARGET,
)
