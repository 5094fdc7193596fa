"""The matrix product of oneDNN, a custom call of jaxlib for x86, with its left operand transposed in place.

It computes the kernel gradient of a 1×1 convolution: XLA:CPU would transpose the activations first. Internal to XLA, as
the call in `onednn` is.
"""

import functools
import json

import jax
import numpy as np

TARGET = "__onednn$matmul"


def transposed_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """aᵀ b of a (K, M) and b (K, N), both float32 or bfloat16: (M, N) of their dtype, accumulated in float32."""
    configuration = {"transpose_a": True, "transpose_b": False, "fusions": {"ops": []}}
    return jax.ffi.ffi_call(
        TARGET,
        jax.ShapeDtypeStruct((a.shape[1], b.shape[1]), a.dtype),
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"onednn_matmul_config": configuration}),
    )(a, b)


@functools.cache
def computes_products() -> bool:
    """Whether this version of jaxlib takes the call on CPU, and computes a small product correctly."""
    random = np.random.default_rng(0)
    a, b = random.standard_normal((5, 3), np.float32), random.standard_normal((5, 4), np.float32)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        try:
            got = np.asarray(jax.jit(transposed_product)(a, b))
        except Exception:  # an unknown target, another form of its configuration
            return False
    return np.allclose(got, a.T @ b, rtol=1e-4, atol=1e-4)
