"""Program: the input of the engine, whatever the model."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from cambrian.sharding.errors import UsageError
from cambrian.sharding.layer import Network
from cambrian.sharding.plan import Plan

MIXES_SAMPLES = "mixes_samples"  # in the metadata of a program whose outputs depend on all samples of a batch


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


Specs = Any  # a TensorSpec, or one for each array of a pytree of dicts, lists and tuples


def refusing_other_inputs(apply: Callable[[Any, Any], Any], specs: Specs) -> Callable[[Any, Any], Any]:
    """Returns `apply(params, inputs)` with a check that inputs are those of `specs`.

    XLA doesn't check custom calls, which are made for these shapes: others would end the process.

    Raises:
      UsageError: from the function, if structure, shapes or dtypes differ.
    """

    def checked(params: Any, inputs: Any) -> Any:
        expected, got = jax.tree.structure(specs), jax.tree.structure(inputs)
        if got != expected:
            raise UsageError(f"inputs must have the structure {expected}, got {got}")
        for (name, spec), array in zip(named_arrays("inputs", specs).items(), jax.tree.leaves(inputs), strict=True):
            if (array.shape, str(array.dtype)) != (spec.shape, spec.dtype):
                raise UsageError(
                    f"{name} must have shape {spec.shape} and dtype {spec.dtype}, got {array.shape} and {array.dtype}"
                )
        return apply(params, inputs)

    return checked


def refusing_derivatives(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a rewritten function, whose differentiation is a TypeError.

    It has lost the rules of `custom_jvp`, `custom_vjp` and `stop_gradient`: its derivatives would be wrong.
    """
    once = jax.custom_jvp(function)
    once.defjvp(_refuse_derivative)
    return once


def _refuse_derivative(primals: Any, tangents: Any) -> Any:
    raise TypeError("a rewritten function can't be differentiated: differentiate the function itself")


def named_arrays(name: str, tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by name: `name` itself for a single array, `name/path` in dicts, lists and tuples.

    Raises:
      UsageError: if the tree has other containers, which an artefact can't hold, empty ones, or two arrays of one name.
    """
    found: dict[str, Any] = {}

    def visit(path: str, node: Any) -> None:
        if type(node) is dict and node and all(isinstance(key, str) for key in node):
            for key in sorted(node):  # the order of JAX's leaves
                visit(f"{path}/{key}", node[key])
        elif type(node) in (list, tuple) and node:
            for index, item in enumerate(node):
                visit(f"{path}/{index}", item)
        elif not hasattr(node, "shape") or path in found:
            is_empty = isinstance(node, (dict, list, tuple)) and not node
            kind = f"an empty {type(node).__name__}" if is_empty else type(node).__name__
            got = f"two arrays {path}" if path in found else kind
            raise UsageError(f"{path} must be one array, or a plain dict by names, list or tuple of arrays, got {got}")
        else:
            found[path] = node

    visit(name, tree)
    return found


def random_array(shape: tuple[int, ...], dtype: np.dtype, random: np.random.Generator) -> np.ndarray:
    """Draws an array of inputs: floats from a standard normal distribution, uint8 from all its values, as pixels are.

    Other integers and bool are 0 or 1: they may be indices into small tables.
    """
    if dtype == np.uint8:
        return random.integers(0, 256, shape, np.uint8)
    if jnp.issubdtype(dtype, jnp.floating):
        return random.standard_normal(shape, np.float32).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A function specialised to a mesh, with its parameters.

    Attributes:
      name: name of the model.
      apply: traceable function `apply(params, inputs) -> outputs`; `params` is a flat sequence of arrays in the order
        of `param_specs`, inputs and outputs are arrays or pytrees, as their specs. It may be called inside another
        function under `jax.jit`.
      params: values of the parameters on the host, in the same order.
      param_specs: specs of the parameters.
      input_spec: spec of the input, or pytree of specs; the first dimension of each array is the batch.
      output_spec: spec of the output, or pytree of specs, likewise.
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
    apply: Callable[[Sequence[jax.Array], Any], Any] = dataclasses.field(repr=False)
    params: Sequence[np.ndarray] = dataclasses.field(repr=False)
    param_specs: tuple[TensorSpec, ...] = dataclasses.field(repr=False)
    input_spec: Specs
    output_spec: Specs
    mesh: Mesh
    reference: Callable[[Any], Any] = dataclasses.field(repr=False)
    tolerance: float
    probe_samples: np.ndarray | None = dataclasses.field(default=None, repr=False)
    network: Network | None = dataclasses.field(default=None, repr=False)
    plan: Plan | None = dataclasses.field(default=None, repr=False)
    rules: tuple[tuple[str, str], ...] = ()
    custom_calls: tuple[str, ...] = ()
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def abstract_arguments(self) -> tuple[list[jax.ShapeDtypeStruct], Any]:
        """Returns `(params, inputs)` as abstract arrays with shardings, to lower `apply` with."""
        return abstract(list(self.param_specs), self.mesh), abstract(self.input_spec, self.mesh)


def abstract(specs: Specs, mesh: Mesh) -> Any:
    """JAX's abstract arrays of specs, with their shardings on `mesh`."""
    return jax.tree.map(lambda spec: spec.abstract(mesh), specs)


def shardings(specs: Specs, mesh: Mesh) -> Any:
    """The shardings of specs on `mesh`."""
    return jax.tree.map(lambda spec: spec.sharding(mesh), specs)
