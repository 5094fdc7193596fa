"""Makes a Program from any function of parameters and inputs, such as a user's own model, by sharding rules."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jax.tree_util import GetAttrKey, KeyPath, keystr

from cambrian.sharding.errors import UsageError
from cambrian.sharding.mesh import DATA_AXIS, MODEL_AXIS
from cambrian.sharding.program import Program, Specs, TensorSpec, named_arrays, shardings
from cambrian.sharding.rules import Rules, check_partition_spec, match_rules

_CUT_BY_DATA = P(DATA_AXIS)
_REPLICATED = ((".*", P()),)
_MAX_CONSTANT_BYTES = 4096  # normalisation constants are smaller, the kernels of most layers larger


def program_from_function(
    function: Callable[[Any, Any], Any],
    params: Any,
    inputs: Any,
    mesh: Mesh,
    rules: Rules | None,
    *,
    name: str,
    input_partition_spec: P = _CUT_BY_DATA,
    output_partition_spec: P = _CUT_BY_DATA,
    tolerance: float = 1e-4,
    metadata: Mapping[str, Any] | None = None,
) -> Program:
    """Makes a Program from `function(params, inputs) -> outputs`; XLA's partitioner inserts the collectives.

    Parameters are named by their path in `params`, such as `Dense_0/kernel`. The program's reference is `function` on
    one device, with parameters and inputs widened to at least float32, unless it names narrow dtypes itself, and matrix
    products in full precision.

    Args:
      function: traceable function that takes all weights in its first argument.
      params: pytree of arrays, such as the variables of Flax Linen or the state from `flax.nnx.split`.
      inputs: global shape (N, …) and dtype of the inputs of a launch, where N is the batch size: a
        `jax.ShapeDtypeStruct`, or one for each array in a pytree of dicts, lists and tuples.
      mesh: mesh from `make_mesh`.
      rules: sharding rules, see `match_rules`; None holds all parameters on every device.
      name: name of the model.
      input_partition_spec: partition spec of each of the inputs (N, …).
      output_partition_spec: partition spec of each of the outputs (N, …).
      tolerance: largest relative error of the outputs; 2e-2 suits models that compute in bfloat16.
      metadata: JSON-compatible facts stored with the program.

    Raises:
      UsageError: if a rule or partition spec doesn't fit (names parameter, shape and axis), a parameter isn't a numeric
        array, `function` closes over weights, which no rule can shard, or it doesn't return arrays (N, …).
    """
    if mesh.axis_names != (MODEL_AXIS, DATA_AXIS) or set(mesh.axis_types) != {AxisType.Auto}:
        raise UsageError(f"expected a mesh from make_mesh, with Auto axes {MODEL_AXIS}, {DATA_AXIS}, got {mesh}")
    values, treedef = _named_values(params)
    shapes = {name: value.shape for name, value in values.items()}
    specs, notes = match_rules(_REPLICATED if rules is None else rules, shapes, mesh)
    param_specs = tuple(TensorSpec(name, value.shape, str(value.dtype), specs[name]) for name, value in values.items())
    input_spec = _tensor_specs("inputs", inputs, input_partition_spec, mesh)

    def call(params: Sequence[jax.Array], inputs: Any) -> Any:
        return function(jax.tree.unflatten(treedef, params), inputs)

    abstract_params = [jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in param_specs]
    try:
        jaxpr, outputs = jax.make_jaxpr(call, return_shape=True)(abstract_params, inputs)
    except Exception as error:  # whatever the function raises
        got = "no params and inputs" if params is None else "inputs"
        error.add_note(f"{name} got {got} {inputs}: the batch size, and what spec says of one sample")
        raise
    if rules is not None:
        _check_constants(jaxpr)
    lengths = {array.shape[:1] for array in jax.tree.leaves((inputs, outputs))}
    if len(lengths) > 1:
        samples = jax.tree.leaves(inputs)[0].shape[0]
        raise UsageError(f"inputs and results of the function must be arrays ({samples}, …), got {inputs} → {outputs}")
    output_spec = _tensor_specs("outputs", outputs, output_partition_spec, mesh)

    def apply(params: Sequence[jax.Array], inputs: Any) -> Any:
        # Constraints keep the rules in force inside other functions and for arguments with any sharding.
        params = lax.with_sharding_constraint(list(params), shardings(list(param_specs), mesh))
        inputs = lax.with_sharding_constraint(inputs, shardings(input_spec, mesh))
        return lax.with_sharding_constraint(call(params, inputs), shardings(output_spec, mesh))

    return Program(
        name=name,
        apply=apply,
        params=list(values.values()),
        param_specs=param_specs,
        input_spec=input_spec,
        output_spec=output_spec,
        mesh=mesh,
        reference=_reference(call, list(values.values()), mesh),
        tolerance=tolerance,
        rules=tuple((pattern, str(spec)) for pattern, spec in rules or ()),
        metadata=dict(metadata or {}),
        notes=() if rules is None else tuple(notes),
    )


def _named_values(params: Any) -> tuple[dict[str, np.ndarray], Any]:
    """Parameter name → its value on the host, in the order of the pytree's leaves; and the tree definition."""
    leaves, treedef = jax.tree.flatten_with_path(params)
    names = [_parameter_name(path) for path, _ in leaves]
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(f"parameter names must be distinct, got {name!r} {count} times")
    values = {}
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if not isinstance(leaf, (np.ndarray, jax.Array)):
            raise UsageError(f"parameter {name!r} must be an array, got {type(leaf).__name__}")
        _check_dtype(f"parameter {name!r}", leaf.dtype)
        values[name] = np.asarray(leaf)
    return values, treedef


def _parameter_name(path: KeyPath) -> str:
    if len(path) > 1 and path[-1] == GetAttrKey("value"):
        path = path[:-1]  # the value of a variable in an nnx.State
    return keystr(path, simple=True, separator="/") or "params"


def _tensor_specs(name: str, tree: Any, partition_spec: P, mesh: Mesh) -> Specs:
    specs = [_tensor_spec(path, array, partition_spec, mesh) for path, array in named_arrays(name, tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), specs)


def _tensor_spec(name: str, array: jax.ShapeDtypeStruct, partition_spec: P, mesh: Mesh) -> TensorSpec:
    if not array.shape or array.shape[0] < 1:
        raise UsageError(f"{name} must have shape (N, …) with N at least 1, got {array.shape}")
    _check_dtype(name, array.dtype)
    check_partition_spec(name, array.shape, partition_spec, mesh)
    return TensorSpec(name, array.shape, str(array.dtype), partition_spec)


def _check_dtype(what: str, dtype: Any) -> None:
    if not (jnp.issubdtype(dtype, np.number) or dtype == np.bool_):  # random keys, for example
        raise UsageError(f"{what} must be numbers, got {dtype}")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise UsageError(f"{what} must have a dtype that JAX computes in, got {dtype} without jax_enable_x64")


def _check_constants(jaxpr: Any) -> None:
    # XLA copies constants into each executable and onto each device: the rules can't shard them.
    for constant in _constants(jaxpr):
        if getattr(constant, "nbytes", 0) > _MAX_CONSTANT_BYTES:
            raise UsageError(
                f"parameters must be arguments of the function, which may hold constants of at most "
                f"{_MAX_CONSTANT_BYTES} bytes, got one of shape {constant.shape} {constant.dtype}"
            )


def _constants(jaxpr: Any) -> Iterator[Any]:
    """The constants of a traced function and of the functions that it calls (`jit`, `scan`, `cond`)."""
    yield from getattr(jaxpr, "consts", ())  # duck typing: the classes of jaxprs differ between versions of JAX
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values())):
            if hasattr(value, "eqns"):
                yield from _constants(value)


def _reference(
    call: Callable[[Sequence[jax.Array], Any], Any], params: Sequence[np.ndarray], mesh: Mesh
) -> Callable[[Any], Any]:
    jitted = jax.jit(call)

    def reference(inputs: Any) -> Any:
        arguments = list(params), inputs
        wide = jax.tree.map(_widened, arguments)
        with jax.default_matmul_precision("highest"):
            try:
                jax.eval_shape(jitted, *wide)
            except Exception:  # whatever the function raises that names the narrow dtypes itself
                wide = arguments
            try:
                outputs = jitted(*jax.device_put(wide, mesh.devices.flat[0]))
            except ValueError:  # of a function that says how its values lie on the whole mesh
                outputs = jitted(*jax.device_put(wide, NamedSharding(mesh, P())))
            return jax.tree.map(np.asarray, outputs)

    return reference


def _widened(array: np.ndarray) -> np.ndarray:
    narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(np.float32) if narrow else array
