"""Traces a function to a graph: nested calls inlined, constants evaluated, dead code removed."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, Var
from jax.tree_util import GetAttrKey, KeyPath, keystr

from cambrian.models.graph.constants import evaluated
from cambrian.models.graph.graph import Constant, Graph, Node, Primitive, Value, without_dead_nodes
from cambrian.models.graph.scan import Scan, scan_node

# Primitive → its parameter that holds the called function. Rules of differentiation are dropped: a graph is evaluated.
_CALLS = {
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}

# A device computes its own samples: where the others lie is nothing to it.
_IDENTITIES = ("copy", "stop_gradient", "optimization_barrier", "name", "sharding_constraint")


def trace(function: Callable[..., Any], params: Any, *inputs: Any) -> tuple[Graph, Any]:
    """Traces `function(params, *inputs)` for known parameters.

    Args:
      params: pytree of arrays, which become constants.
      inputs: pytrees of arrays or `jax.ShapeDtypeStruct`, whose leaves become the graph's inputs, in order.

    Returns:
      The graph, and the tree definition of the function's results.
    """
    call, arrays = of_arrays(function, params)
    closed, results = jax.make_jaxpr(call, return_shape=True)(list(arrays.values()), *inputs)
    known = [_constant(array, _name(path)) for path, array in arrays.items()]
    taken = _values(closed.jaxpr.invars[len(known) :])
    nodes: list[Node] = []
    outputs = _inline(closed, [*known, *taken], nodes)
    graph = without_dead_nodes(Graph(taken, tuple(nodes), tuple(outputs)))
    return graph, jax.tree.structure(results)


def trace_abstractly(function: Callable[[Any, Any], Any], params: Any, inputs: Any) -> Graph:
    """Traces `function(params, inputs)` for parameters of which shapes and dtypes count: the graph takes them, too."""
    abstract = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), params)
    return trace(lambda _, *arguments: function(*arguments), {}, abstract, inputs)[0]


def of_arrays(
    function: Callable[..., Any], params: Any
) -> tuple[Callable[..., Any], dict[KeyPath, np.ndarray | jax.Array]]:
    """A function of a list of those leaves of `params` that are arrays, and of `inputs`; and these leaves."""
    with_paths, treedef = jax.tree.flatten_with_path(params)
    arrays = {path: leaf for path, leaf in with_paths if isinstance(leaf, (np.ndarray, jax.Array))}

    def call(known: Sequence[Any], *inputs: Any) -> Any:
        rest = iter(known)
        leaves = [next(rest) if path in arrays else leaf for path, leaf in with_paths]
        return function(jax.tree.unflatten(treedef, leaves), *inputs)

    return call, arrays


def _name(path: KeyPath) -> str:
    """A parameter's path, such as `layer1.0.conv1.kernel`."""
    if path and path[-1] == GetAttrKey("value"):  # of a variable in an nnx.State
        path = path[:-1]
    return keystr(path, simple=True, separator=".")


def _constant(array: Any, path: str = "") -> Constant:
    is_random_key = jnp.issubdtype(array.dtype, jax.dtypes.extended)
    return Constant.of(array if is_random_key else np.asarray(array), path)


def _values(variables: Sequence[Any]) -> tuple[Value, ...]:
    """New values like variables of a jaxpr."""
    return tuple(Value(variable.aval.shape, variable.aval.dtype) for variable in variables)


def _inline(closed: ClosedJaxpr, arguments: Sequence[Value], nodes: list[Node]) -> list[Value]:
    """Appends the nodes of a jaxpr and of the functions that it calls; returns its results."""
    jaxpr = closed.jaxpr
    values: dict[Var, Value] = dict(zip(jaxpr.invars, arguments, strict=True))
    values |= {variable: _constant(array) for variable, array in zip(jaxpr.constvars, closed.consts, strict=True)}

    def read(atom: Any) -> Value:
        if not isinstance(atom, Literal):
            return values[atom]
        aval: Any = atom.aval
        return _constant(np.asarray(atom.val, aval.dtype))

    def add(operation: Primitive, inputs: Sequence[Value], outputs: tuple[Value, ...]) -> Sequence[Value]:
        node = Node(operation, tuple(inputs), outputs)
        constants = evaluated(node)
        if constants is None:
            nodes.append(node)
        return node.outputs if constants is None else constants

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        name, params = equation.primitive.name, equation.params
        if name == "reshape" and (order := params["dimensions"]) is not None:  # of a transposed operand
            shape = tuple(inputs[0].shape[axis] for axis in order)
            transposed = Primitive(lax.transpose_p, {"permutation": tuple(order)})
            inputs[:1] = add(transposed, inputs[:1], (Value(shape, inputs[0].dtype),))
            params = {**params, "dimensions": None}
        if (called := params.get(_CALLS.get(name, ""))) is not None:
            # Since jax 0.12 a Jaxpr holds its constants itself.
            inner = called if hasattr(called, "consts") else ClosedJaxpr(called, ())
            outputs = _inline(inner, inputs, nodes)
        elif name == "scan" and all(isinstance(value, Constant) for value in inputs[: _counts(equation)[0]]):
            node = _scan(equation, inputs)
            nodes.append(node)
            outputs = node.outputs
        elif name in _IDENTITIES or _changes_nothing(equation):
            outputs = inputs
        else:
            operation = Primitive(equation.primitive, params, bool(equation.effects))
            outputs = add(operation, inputs, _values(equation.outvars))
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _counts(equation: Any) -> tuple[int, int]:
    """The numbers of constants and of carried values among the operands of a scan, whose other operands follow them."""
    params = equation.params
    if "ft_in" in params:  # since jax 0.12
        constants, carried, _ = params["ft_in"].unpack()
        return len(constants), len(carried)
    return params["num_consts"], params["num_carry"]


def _scan(equation: Any, inputs: Sequence[Value]) -> Node:
    params, (num_constants, num_carried) = equation.params, _counts(equation)
    constants, operands = inputs[:num_constants], inputs[num_constants:]
    body: Any = params["jaxpr"]
    taken = _values(body.jaxpr.invars[len(constants) :])
    nodes: list[Node] = []
    results = _inline(body, [*constants, *taken], nodes)
    graph = without_dead_nodes(Graph(taken, tuple(nodes), tuple(results)))
    scan = Scan(graph, num_carried, params["length"], params["reverse"], params["unroll"], ())
    return scan_node(scan, operands, _values(equation.outvars))


def _changes_nothing(equation: Any) -> bool:
    """Whether a conversion, reshape or broadcast gives its operand."""
    name = equation.primitive.name
    if name not in ("convert_element_type", "reshape", "broadcast_in_dim", "squeeze", "transpose"):
        return False
    before, after = equation.invars[0].aval, equation.outvars[0].aval
    same = (before.shape, before.dtype) == (after.shape, after.dtype) and len(equation.invars) == 1
    order = equation.params.get({"transpose": "permutation", "reshape": "dimensions"}.get(name)) or ()
    return same and tuple(order) == tuple(range(len(order)))
