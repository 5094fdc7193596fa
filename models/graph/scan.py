"""Loops: `jax.lax.scan`, and `jax.lax.fori_loop` between known bounds, with a body that is a graph, too.

XLA:CPU computes a convolution in a loop's body on one core.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
from jax import lax

from cambrian.models.graph.graph import Constant, Graph, Node, Value, rewritten


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """A scan. Its operands are what is carried, what is scanned over, and the constants of its body.

    Attributes:
      body: graph from what is carried and one slice of what is scanned over to the same, and one slice of the results.
      num_carried: number of values that are carried.
      length: number of iterations.
      reverse: whether the last slice comes first.
      unroll: number of iterations that are unrolled in the loop.
      constants: the constants of the body, in the order of the operands.
    """

    body: Graph
    num_carried: int
    length: int
    reverse: bool
    unroll: int
    constants: tuple[Constant, ...]
    name = "scan"

    @property
    def has_effects(self) -> bool:
        return any(node.has_effects for node in self.body.nodes)

    def __call__(self, *arrays: jax.Array) -> list[jax.Array]:
        count = len(self.body.inputs)
        carried, slices = arrays[: self.num_carried], arrays[self.num_carried : count]
        constants = dict(zip(self.constants, arrays[count:], strict=True))

        def step(carried: Sequence[jax.Array], slices: Sequence[jax.Array]):
            results = self.body.evaluate(constants, [*carried, *slices])
            return results[: self.num_carried], results[self.num_carried :]

        last, stacked = lax.scan(step, list(carried), list(slices), self.length, self.reverse, self.unroll)
        return [*last, *stacked]


def scan_node(scan: Scan, operands: Sequence[Value], outputs: Sequence[Value]) -> Node:
    """A node that computes a scan of operands, which also reads the constants of the body."""
    constants = tuple(scan.body.constants())
    scan = dataclasses.replace(scan, constants=constants)
    return Node(scan, (*operands, *constants), tuple(outputs))


def rewrite_bodies(graph: Graph, rewrite: Callable[[Graph], Graph]) -> Graph:
    """Rewrites the body of each scan."""

    def rewrite_node(node: Node) -> list[Node] | None:
        scan = node.operation
        if not isinstance(scan, Scan):
            return None
        operands = node.inputs[: len(scan.body.inputs)]
        return [scan_node(dataclasses.replace(scan, body=rewrite(scan.body)), operands, node.outputs)]

    return rewritten(graph, rewrite_node)


def nodes_and_repetitions(graph: Graph, repetitions: int = 1) -> list[tuple[Node, int]]:
    """The nodes of a graph and of the bodies of its scans, in order, and how often each is computed."""
    found = []
    for node in graph.nodes:
        if isinstance(node.operation, Scan):
            found += nodes_and_repetitions(node.operation.body, repetitions * node.operation.length)
        else:
            found.append((node, repetitions))
    return found
