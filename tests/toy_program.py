"""A tiny classifier as a Program on a (2, 4) mesh: one parameter cut by the model axis, one replicated."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from cambrian.sharding import MeshShape, Program, TensorSpec, make_mesh
from cambrian.sharding.host import acquire_devices

MESH = MeshShape(2, 4)
BATCH_SIZE = 8
NUM_CLASSES = 10


def toy_program(seed: int = 0, batch_size: int = BATCH_SIZE) -> Program:
    """Images (N, 8, 8, 3) uint8 → logits (N, 10) float32; each model group of devices holds half of the features."""
    mesh = make_mesh(MESH, acquire_devices(MESH.num_devices, "cpu")[0])
    random = np.random.default_rng(seed)
    kernel = random.standard_normal((2, 96, NUM_CLASSES), np.float32)
    bias = random.standard_normal(NUM_CLASSES, np.float32)

    def apply(params, images):
        def local(kernel, bias, images):
            pixels = images.reshape(images.shape[0], 2, 96).astype(jnp.float32) / 255
            half = jax.lax.dynamic_index_in_dim(pixels, jax.lax.axis_index("model"), axis=1, keepdims=False)
            partial = jnp.matmul(half, kernel[0], precision=jax.lax.Precision.HIGHEST)
            return jax.lax.psum(partial, "model") + bias

        specs = (P("model"), P(), P("data"))
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("data"))(params[0], params[1], images)

    def reference(images):
        pixels = images.reshape(len(images), 192).astype(np.float32) / 255
        return pixels @ kernel.reshape(192, NUM_CLASSES) + bias

    return Program(
        name="toy",
        apply=apply,
        params=[kernel, bias],
        param_specs=(
            TensorSpec("fc.kernel", kernel.shape, "float32", P("model")),
            TensorSpec("fc.bias", bias.shape, "float32", P()),
        ),
        input_spec=TensorSpec("images", (batch_size, 8, 8, 3), "uint8", P("data")),
        output_spec=TensorSpec("logits", (batch_size, NUM_CLASSES), "float32", P("data")),
        mesh=mesh,
        reference=reference,
        tolerance=1e-4,
        rules=(("fc.kernel", "P('model')"),),
        metadata={"labels": [f"class {i}" for i in range(NUM_CLASSES)]},
        notes=("a note of the program",),
    )
