"""Whether a function reduces over the samples of a batch, so that no part of a batch can be computed alone.

That may show in few results: `lax.cond(x.mean() > 2, …)` mixes samples for some inputs alone. So the operations are
compared, not only results.
"""

from collections.abc import Iterator
from typing import Any

import jax

from cambrian.models.graph.graph import Graph
from cambrian.models.graph.scan import Scan

_Shapes = list[tuple[int, ...]]


def reduction_over_samples(one: Graph, other: Graph) -> str | None:
    """Returns the name of an operation that reduces over the samples; None if none is found.

    Args:
      one: graph of a function, as `trace` returns it.
      other: graph of the same function for another number of samples: where shapes differ, there are samples.
    """
    operations, others = list(_operations(one)), list(_operations(other))
    if [name for name, _, _ in operations] != [name for name, _, _ in others]:
        return None
    for (name, read, made), (_, others_read, others_made) in zip(operations, others, strict=True):
        is_reduction = name.startswith(("reduce", "arg")) or name == "dot_general"
        if is_reduction and read != others_read and made == others_made:
            return name
    return None


def _operations(graph: Any) -> Iterator[tuple[str, _Shapes, _Shapes]]:
    """The name of each operation with the shapes that it reads and makes, of a graph or jaxpr and of those inside."""
    if isinstance(graph, Graph):
        for node in graph.nodes:
            yield node.name, [value.shape for value in node.inputs], [value.shape for value in node.outputs]
            inner = [node.operation.body] if isinstance(node.operation, Scan) else jax.tree.leaves(dict(node.params))
            for each in inner:
                yield from _operations(each)
    for equation in getattr(graph, "eqns", ()):  # duck typing: the classes of jaxprs differ between versions of JAX
        yield equation.primitive.name, *([v.aval.shape for v in vs] for vs in (equation.invars, equation.outvars))
        for each in jax.tree.leaves(list(equation.params.values())):
            yield from _operations(each)
