"""Program: the input of the engine, whatever the model."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from cambrian.sharding.layer import Network
from cambrian.sharding.plan import Plan


@dataclasses.dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, global shape, dtype (NumPy's name, such as `bfloat16`) and partition spec of an array."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    partition_spec: P = P()

    def abstract(self, mesh: Mesh) -> jax.ShapeDtypeStruct:
        """Returns JAX's abstract array, with its sharding on `mesh`."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=self.sharding(mesh))

    def sharding(self, mesh: Mesh) -> NamedSharding:
        return NamedSharding(mesh, self.partition_spec)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A function specialised to a mesh, with its parameters.

    Attributes:
      name: name of the model.
      apply: traceable function `apply(params, inputs) -> outputs`; `params` is a flat sequence of arrays in the order
        of `param_specs`. It may be called inside another function under `jax.jit`.
      params: values of the parameters on the host, in the same order.
      param_specs: specs of the parameters.
      input_spec: spec of the input; its first dimension is the batch.
      output_spec: spec of the output; its first dimension is the batch.
      mesh: mesh that `apply` and the specs refer to.
      reference: function `reference(inputs) -> outputs` on the host, unsharded, in float32.
      tolerance: largest relative error of the outputs against `reference` (norm of the difference over the norm).
      probe_samples: inputs (M, …) that the outputs are compared with `reference` on; None for random ones.
      network: layers of a planned model; None for a function that is optimised or partitioned otherwise.
      plan: how each layer, or each operation of an optimised function, is cut and computed; None otherwise.
      rules: (pattern, partition spec) pairs of a user's function, as text.
      custom_calls: targets of the custom calls in `apply`, each internal to one version of jaxlib.
      metadata: JSON-compatible facts stored with the program, such as preprocessing and labels.
      notes: human-readable deviations from the request.
    """

    name: str
    apply: Callable[[Sequence[jax.Array], jax.Array], jax.Array] = dataclasses.field(repr=False)
    params: Sequence[np.ndarray] = dataclasses.field(repr=False)
    param_specs: tuple[TensorSpec, ...] = dataclasses.field(repr=False)
    input_spec: TensorSpec
    output_spec: TensorSpec
    mesh: Mesh
    reference: Callable[[np.ndarray], np.ndarray] = dataclasses.field(repr=False)
    tolerance: float
    probe_samples: np.ndarray | None = dataclasses.field(default=None, repr=False)
    network: Network | None = dataclasses.field(default=None, repr=False)
    plan: Plan | None = dataclasses.field(default=None, repr=False)
    rules: tuple[tuple[str, str], ...] = ()
    custom_calls: tuple[str, ...] = ()
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def abstract_arguments(self) -> tuple[list[jax.ShapeDtypeStruct], jax.ShapeDtypeStruct]:
        """Returns `(params, inputs)` as abstract arrays with shardings, to lower `apply` with."""
        return [spec.abstract(self.mesh) for spec in self.param_specs], self.input_spec.abstract(self.mesh)
