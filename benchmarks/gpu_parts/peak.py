"""The largest rate of bfloat16 matrix products that XLA reaches on the device."""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def measure(platform: str, size: int = 8192, launches: int = 20, repeats: int = 5) -> Iterator[dict[str, Any]]:
    """Yields one row with `tflops`, the median over the repeats, for square matrices of `size` rows."""
    device = jax.local_devices(backend=platform)[0]
    random = np.random.default_rng(0)
    left, right = (
        jax.device_put(jnp.asarray(random.standard_normal((size, size), np.float32), jnp.bfloat16), device)
        for _ in range(2)
    )
    multiply = jax.jit(jnp.matmul)
    multiply(left, right).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(launches):
            product = multiply(left, right)
        product.block_until_ready()
        seconds.append((time.perf_counter() - start) / launches)
    yield {"device": device.device_kind, "size": size, "tflops": 2e-12 * size**3 / statistics.median(seconds)}
