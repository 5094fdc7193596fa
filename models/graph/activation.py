"""Recognises activations by their values: libraries write the same function in different primitives."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cambrian.models.graph.constants import uniform_value
from cambrian.models.graph.graph import Constant, Node, Uses, Value, is_elementwise
from cambrian.models.lowerings.activations import ACTIVATIONS

_MOST_NODES = 24
_MAGNITUDES = np.concatenate([np.logspace(-8, 4, 49), np.linspace(0.25, 12, 48), [3.0, 6.0, 1e30]])
_POINTS = np.concatenate([-_MAGNITUDES, [0.0], _MAGNITUDES]).astype(np.float32)
# Relative to the result or, where terms may have cancelled, to an argument of at most _MOST_CANCELLED: near 0 no added
# constant is small enough. GELU and its approximation by tanh differ by 5e-4; bfloat16 constants have 8 bits.
_TOLERANCE = {"float32": 1e-6, "bfloat16": 2.0**-8}
_MOST_CANCELLED = 8.0


def activation_after(value: Value, uses: Uses) -> tuple[str, list[Node]] | None:
    """The activation that is applied to `value` and is all that reads it.

    Returns:
      Its name in ACTIVATIONS, and the nodes that compute it, in order; None if there is none that is known.
    """
    found, last_name = None, None
    region: list[Node] = []
    known = {value}
    waiting = list(uses.readers(value))
    while waiting and len(region) < _MOST_NODES:
        node = next((n for n in waiting if _is_pointwise(n, value, known)), None)
        if node is None:
            break
        waiting.remove(node)
        region.append(node)
        known.add(node.output)
        open_values = [v for v in known if v is not node.output and not _closed(v, region, uses)]
        if not open_values and (name := _name(region, value)) is not None:
            if name == last_name and not _is_cast(node):
                break  # the last node changes nothing at the points, such as an epsilon or a distant bound: it stays
            last_name = name
            found = (name, list(region)) if node.output.dtype == value.dtype else found
        waiting += [reader for reader in uses.readers(node.output) if reader not in waiting]
    return found


def _is_pointwise(node: Node, value: Value, known: set[Value]) -> bool:
    return (
        is_elementwise(node)
        and node.name not in ("eq", "is_finite", "ne")  # guards against NaN and infinity, which no point is
        and node.output.shape == value.shape
        and all(operand in known or uniform_value(operand) is not None for operand in node.inputs)
    )


def _closed(value: Value, region: Sequence[Node], uses: Uses) -> bool:
    return not uses.is_result(value) and all(reader in region for reader in uses.readers(value))


def _name(region: Sequence[Node], value: Value) -> str | None:
    if not {str(value.dtype), str(region[-1].output.dtype)} <= _TOLERANCE.keys():
        return None
    if value.dtype == jnp.float32 and any(node.output.dtype == jnp.bfloat16 for node in region):
        return None  # rounded, as the function says
    numbers: dict[Value, int] = {value: 0}
    steps = []
    for node in region:
        operands = tuple(
            (uniform_value(operand), str(operand.dtype)) if isinstance(operand, Constant) else numbers[operand]
            for operand in node.inputs
        )
        params = tuple(sorted((name, repr(param)) for name, param in node.params.items()))
        steps.append((node.name, params, operands))
        numbers[node.output] = len(numbers)
    key = (*steps, str(value.dtype))
    if key not in _names:
        _names[key] = _computed_name(region, value)
    return _names[key]


_names: dict[tuple, str | None] = {}  # steps of a computation and its dtype → its name, as networks repeat them


def _computed_name(region: Sequence[Node], value: Value) -> str | None:
    name = _name_at_points(region, value)
    bounds = [node for node in region if node.name in ("clamp", "max", "min")]
    if name is not None and any(_name_at_points(region, value, without=node) == name for node in bounds):
        return None  # a bound that changes nothing at the points, such as of a sigmoid's argument: it stays
    return name


def _name_at_points(region: Sequence[Node], value: Value, without: Node | None = None) -> str | None:
    """The name of what a region computes at the points, or would without a bound."""

    def compute(points: jax.Array) -> jax.Array:
        values = {value: points}
        for node in region:
            if node is without:
                bounded = [values[operand] for operand in node.inputs if operand in values]
                if len(bounded) == 1:
                    (values[node.output],) = bounded
                    continue
            arrays = [
                _as_wide(jnp.full(points.shape if operand.shape else (), uniform_value(operand), operand.dtype))
                if isinstance(operand, Constant)
                else values[operand]
                for operand in node.inputs
            ]
            if value.dtype != jnp.float32 and jnp.issubdtype(node.output.dtype, jnp.floating) and _is_cast(node):
                values[node.output] = arrays[0].astype(jnp.float32)
            else:
                (values[node.output],) = node.operation(*arrays)
        return values[region[-1].output]

    got, tolerance = _at_points(compute), _TOLERANCE[str(value.dtype)]
    return next((name for name in ACTIVATIONS if _is_close(got, _expected(name), tolerance)), None)


def _is_cast(node: Node) -> bool:
    return node.name == "convert_element_type"


def _as_wide(array: jax.Array) -> jax.Array:
    """In float32: what is written in bfloat16 is compared without its rounding."""
    return array.astype(jnp.float32) if array.dtype == jnp.bfloat16 else array


def _is_close(got: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    cancelled = np.minimum(abs(_POINTS), _MOST_CANCELLED)
    return bool((abs(got - expected) <= tolerance * np.maximum(abs(expected), cancelled)).all())


@functools.cache
def _expected(name: str) -> np.ndarray:
    return _at_points(ACTIVATIONS[name])


def _at_points(function: Callable[[jax.Array], jax.Array]) -> np.ndarray:
    with jax.ensure_compile_time_eval():  # compiled as a whole, which takes less time than one primitive after another
        return np.asarray(jax.jit(function)(jnp.asarray(_POINTS)), np.float32)
