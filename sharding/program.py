"""A Program: what the engine compiles, whoever wrote the model."""

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
    """An array without its values: name, global shape, dtype (NumPy's name, such as `bfloat16`) and partition spec."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    partition_spec: P = P()

    def abstract(self, mesh: Mesh) -> jax.ShapeDtypeStruct:
        """The same as JAX's abstract array with its sharding on `mesh`."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=self.sharding(mesh))

    def sharding(self, mesh: Mesh) -> NamedSharding:
        return NamedSharding(mesh, self.partition_spec)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A function specialised to a mesh, with the parameters it is called on.

    Attributes:
      name: of the model.
      apply: `apply(params, inputs) -> outputs`, traceable; `params` is a flat sequence of arrays in the order of
        `param_specs`. It may stand inside another function under `jax.jit`.
      params: the parameters' values on the host, in the same order.
      param_specs: their names, global shapes, dtypes and shardings.
      input_spec: the input; its first dimension is the batch.
      output_spec: the output; its first dimension is the batch.
      mesh: the mesh that `apply` and the specs refer to.
      reference: `reference(inputs) -> outputs` on the host, unsharded, in float32.
      tolerance: largest relative error (norm of the difference over norm) of the outputs against `reference`.
      network, plan: of a planned model; None for a user's function.
      rules: (pattern, partition spec) pairs of a user's function, as text.
      custom_calls: targets of custom calls that `apply` makes by itself; they are internal to one version of jaxlib.
      metadata: JSON-compatible facts that travel with the program: preprocessing, labels, weights.
      notes: in words, where the program differs from what was asked.
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
    network: Network | None = dataclasses.field(default=None, repr=False)
    plan: Plan | None = dataclasses.field(default=None, repr=False)
    rules: tuple[tuple[str, str], ...] = ()
    custom_calls: tuple[str, ...] = ()
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def abstract_arguments(self) -> tuple[list[jax.ShapeDtypeStruct], jax.ShapeDtypeStruct]:
        """`(params, inputs)` as abstract arrays with shardings, to lower `apply` on."""
        return [spec.abstract(self.mesh) for spec in self.param_specs], self.input_spec.abstract(self.mesh)
