"""Whether a function mixes the samples of a batch, so that no part of a batch can be computed alone.

That may show in few results: `lax.cond(x.mean() > 2, …)` mixes samples for some inputs alone. So the operations are
compared, not only results.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from cambrian.models.graph.graph import Graph
from cambrian.models.graph.scan import Scan
from cambrian.models.graph.trace import trace_abstractly
from cambrian.sharding import MIXES_SAMPLES, Program

_Shapes = list[tuple[int, ...]]


def mixing_operation(function: Callable[[Any, Any], Any], params: Any, inputs: Any) -> str | None:
    """What mixes the samples of `inputs`; None if nothing is found, or the function is bound to their number.

    That is an operation, or results that are no samples, as many as there are by chance.

    Args:
      params: pytree of arrays, of which shapes and dtypes count.
      inputs: (N, …) and dtype: a `jax.ShapeDtypeStruct`, or one for each array in a pytree.
    """
    if (samples := jax.tree.leaves(inputs)[0].shape[0]) == 1:
        return None
    one = trace_abstractly(function, params, inputs)
    try:
        other = trace_abstractly(function, params, resized(inputs, 2 * samples))
    except Exception:  # whatever the function raises that is bound to its number of samples
        return None
    if any(value.shape[:1] != (2 * samples,) for value in other.outputs):
        return "results that don't grow with it"
    return operation_over_samples(one, other)


def resized(inputs: Any, samples: int) -> Any:
    """Shapes and dtypes of inputs (N, …) for another number of samples."""
    return jax.tree.map(lambda each: jax.ShapeDtypeStruct((samples, *each.shape[1:]), each.dtype), inputs)


def operation_over_samples(one: Graph, other: Graph) -> str | None:
    """Returns the name of an operation that mixes samples; None if none is found.

    That is an operation that reads samples and makes something without them, such as a maximum of all, or something
    with two of them, such as the distances of pairs. An operation that keeps the samples in another order isn't found.

    Args:
      one: graph of a function for at least two samples, as `trace` returns it; parameters may be inputs, too.
      other: graph of the same function for twice as many: what differs in the shapes are samples.
    """
    found, others = list(operations(one)), list(operations(other))
    if [name for name, _, _ in found] != [name for name, _, _ in others]:
        return "other operations for another number of samples"
    for (name, read, made), (_, others_read, others_made) in zip(found, others, strict=True):
        axes_read, axes_made = _most_differing(read, others_read), _most_differing(made, others_made)
        if axes_made > 1 or axes_read > axes_made:
            return name
    return None


def marked_as_mixing(program: Program, operation: str = "") -> Program:
    """A program whose executable takes whole batches alone; `operation` mixes samples, if it is known."""
    by = f" ({operation})" if operation else ""
    note = f"{program.name} mixes the samples of a batch{by}, so that each launch takes a whole batch"
    metadata = {**program.metadata, MIXES_SAMPLES: True}
    return dataclasses.replace(program, metadata=metadata, notes=(*program.notes, note))


def _most_differing(shapes: _Shapes, others: _Shapes) -> int:
    """The largest number of axes in which a shape differs from its counterpart."""
    pairs = zip(shapes, others, strict=False)
    return max((sum(map(int.__ne__, shape, other)) for shape, other in pairs), default=0)


def operations(graph: Any) -> Iterator[tuple[str, _Shapes, _Shapes]]:
    """The name of each operation with the shapes that it reads and makes, of a graph or jaxpr and of those inside.

    Of a graph, operations on constants alone are left out: small ones are evaluated, large ones aren't.
    """
    if isinstance(graph, Graph):
        depending = set(graph.inputs)
        for node in graph.nodes:
            if depending.isdisjoint(node.inputs):
                continue
            depending.update(node.outputs)
            yield node.name, [value.shape for value in node.inputs], [value.shape for value in node.outputs]
            inner = [node.operation.body] if isinstance(node.operation, Scan) else jax.tree.leaves(dict(node.params))
            for each in inner:
                yield from operations(each)
    for equation in getattr(graph, "eqns", ()):  # duck typing: the classes of jaxprs differ between versions of JAX
        yield equation.primitive.name, *([v.aval.shape for v in vs] for vs in (equation.invars, equation.outvars))
        for each in jax.tree.leaves(list(equation.params.values())):
            yield from operations(each)
