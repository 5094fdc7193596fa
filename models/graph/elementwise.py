"""Primitives that compute each element of their result from the same element of their operands."""

from cambrian.models.graph.graph import Node, Primitive

_NAMES = frozenset(
    """
    abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type cos cosh div eq erf erf_inv
    erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg nextafter not or
    pow rem round rsqrt select_n sign sin sinh sqrt square sub tan tanh xor
    """.split()  # noqa: SIM905
)


def is_elementwise(node: Node) -> bool:
    return isinstance(node.operation, Primitive) and node.name in _NAMES
