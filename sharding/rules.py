"""Sharding rules: ordered (pattern, partition spec) pairs that shard the parameters of a model by name."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from jax.sharding import AbstractMesh, Mesh, PartitionSpec as P

from cambrian.sharding.errors import UsageError

Rules = Sequence[tuple[str, P]]


def match_rules(rules: Rules, shapes: Mapping[str, tuple[int, ...]], mesh: Mesh) -> tuple[dict[str, P], list[str]]:
    """Assigns each parameter the partition spec of the first rule that matches its name.

    Scalars must match a rule, too. A last rule `(".*", P())` replicates all remaining parameters.

    Args:
      rules: rules in order; a pattern is a regular expression that matches anywhere in a name (`re.search`).
      shapes: parameter name, such as `Dense_0/kernel` → global shape.
      mesh: mesh that the specs refer to.

    Returns:
      Parameter name → spec, and a note for each unused rule.

    Raises:
      UsageError: if no rule matches a parameter or its spec doesn't fit `mesh` (names parameter, shape and axis), or if
        a rule isn't a pair or its pattern no regular expression.
    """
    for rule in rules:
        if not isinstance(rule, (tuple, list)) or len(rule) != 2:
            raise UsageError(f"sharding rules must be pairs of a pattern and a PartitionSpec, got {rule!r}")
    patterns = [_compile(pattern) for pattern, _ in rules]
    specs, deciding = {}, set()
    for name, shape in shapes.items():
        first = next((index for index, pattern in enumerate(patterns) if pattern.search(name)), None)
        if first is None:
            raise UsageError(f"each parameter must match a sharding rule, got {name!r} of shape {shape} without one")
        specs[name] = rules[first][1]
        check_partition_spec(f"parameter {name!r}", shape, specs[name], mesh)
        deciding.add(first)
    idle = [pattern for index, (pattern, _) in enumerate(rules) if index not in deciding]
    return specs, [f"the sharding rule {pattern!r} is unused" for pattern in idle]


def check_partition_spec(what: str, shape: tuple[int, ...], spec: P, mesh: Mesh | AbstractMesh) -> None:
    """Raises UsageError, naming `what`, shape and axis, if `spec` doesn't fit the shape or `mesh`."""
    subject = f"{what} of shape {shape}"
    if not isinstance(spec, P):
        raise UsageError(f"{subject}: expected a PartitionSpec, got {spec!r}")
    if len(spec) > len(shape):
        raise UsageError(f"{subject}: expected a spec of at most {len(shape)} dimensions, got {spec}")
    cuts = [() if entry is None else entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    for axis, count in Counter(axis for axes in cuts for axis in axes).items():
        if axis not in mesh.shape:
            raise UsageError(
                f"{subject}: expected mesh axes among {', '.join(mesh.axis_names)}, got {axis!r} in {spec}"
            )
        if count > 1:
            raise UsageError(f"{subject}: expected each mesh axis at most once, got {axis!r} {count} times in {spec}")
    for dimension, axes in enumerate(cuts):
        parts = 1
        for axis in axes:
            parts *= mesh.shape[axis]
            if shape[dimension] % parts:
                raise UsageError(
                    f"{subject}: dimension {dimension} must be divisible by {parts} for mesh axis {axis!r} of "
                    f"{mesh.shape[axis]}, got {shape[dimension]}"
                )


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"a sharding rule's pattern must be a regular expression, got {pattern!r}: {error}") from None
