"""A tiny executable with a collective in it, and outputs that the tests make ready."""

import threading

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from cambrian.engine.runtime.executable import Analysis, Executable
from cambrian.sharding import MeshShape, TensorSpec, make_mesh, sum_over_model_axis

NUM_FEATURES = 3


def make_executable(shape: MeshShape, batch_size: int) -> Executable:
    """Outputs are inputs × weight × the size of the model axis, summed over that axis."""
    mesh = make_mesh(shape, jax.devices())
    param_specs = (TensorSpec("weight", (NUM_FEATURES,), "float32"),)
    input_spec = TensorSpec("inputs", (batch_size, NUM_FEATURES), "float32", P("data"))

    def local(weight: jax.Array, inputs: jax.Array) -> jax.Array:
        return sum_over_model_axis(inputs * weight)

    def apply(params, inputs):
        return jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))(params[0], inputs)

    abstract_params = [spec.abstract(mesh) for spec in param_specs]
    compiled = jax.jit(apply).lower(abstract_params, input_spec.abstract(mesh)).compile()
    weight = jax.device_put(np.arange(1, NUM_FEATURES + 1, dtype=np.float32), param_specs[0].sharding(mesh))
    return Executable(
        name="scale",
        kind="online",
        compiled=compiled,
        params=[weight],
        param_specs=param_specs,
        input_spec=input_spec,
        output_spec=TensorSpec("outputs", (batch_size, NUM_FEATURES), "float32", P("data")),
        mesh=mesh,
        analysis=Analysis.of(compiled),
    )


def inputs_of(index: int, num_samples: int = 8) -> np.ndarray:
    return np.full((num_samples, NUM_FEATURES), index, np.float32)


def outputs_of(index: int, num_samples: int = 8, model: int = 2) -> np.ndarray:
    return inputs_of(index, num_samples) * np.array([1, 2, 3], np.float32) * model


def host_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("cambrian-host")]


class GatedOutputs:
    """Outputs that are ready when the test says so."""

    def __init__(self, value: float = 0.0):
        self.gate = threading.Event()
        self.value = value

    def block_until_ready(self):
        assert self.gate.wait(timeout=10)
        return self

    def __array__(self, dtype=None, copy=None):
        return np.full((1, 1), self.value, np.float32)
