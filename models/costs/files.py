"""The files of cost tables, and the table in force on this machine.

A file holds one JSON value per line, so that an interrupted measurement loses nothing: first the machine, then
`{"case": [the fields of LayerCase], "ms": …}` and `{"transition": [operation, mesh, values, dtype], "ms": …}`, each
with `"reference_ms"`, see `measure.measure_cases`, and `{"tuned": precision}` once `--tune` has measured all that it
wanted in a precision. A line that can't be read, such as after a power failure, or whose times and sizes aren't above
0, as estimates divide by them, is left out, and measured anew.
"""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cambrian.models.costs.layer_case import LayerCase
from cambrian.models.costs.machine import SHIPPED as SHIPPED, Machine, own_table_path, text_of, this_machine
from cambrian.models.costs.table import CostTable, Measurable, Transition

_CASE_FIELDS = [field.name for field in dataclasses.fields(LayerCase)]
_SIZES = {
    kind: [field.name for field in dataclasses.fields(kind) if field.type is int] for kind in (LayerCase, Transition)
}


def current_cost_table(platform: str) -> CostTable:
    """Returns the cost table in force here: what was measured on this machine, filled up by the shipped tables."""
    return in_force(own_table(platform))


def own_table(platform: str) -> CostTable:
    """Returns what was measured on this machine into the user's file."""
    own = read_table(own_table_path(platform), platform)
    own.machine = this_machine(platform)
    return own


def in_force(own: CostTable) -> CostTable:
    """Returns this machine's own table, filled up by the shipped table of the nearest machine and the largest one."""
    assert own.machine is not None
    tables = {path: _shipped(path, own.platform) for path in sorted(SHIPPED.glob("*.jsonl"))}
    distances = {path: own.machine.distance(table.machine) for path, table in tables.items() if table.machine}
    if not distances:
        return own
    nearest = min(distances, key=distances.__getitem__)
    largest = max(distances, key=lambda path: len(tables[path].times))
    return functools.reduce(CostTable.filled_up, [tables[path] for path in dict.fromkeys((nearest, largest))], own)


@functools.cache
def _shipped(path: Path, platform: str) -> CostTable:
    return read_table(path, platform)


def read_table(path: Path, platform: str) -> CostTable:
    """Reads the lines of a table's file; the table is empty if there is no such file or it is of another platform."""
    table = CostTable(platform)
    for line in text_of(path).splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            _take(table, json.loads(line))
        if table.machine is not None and table.machine.platform != platform:
            return CostTable(platform)
    return table


def _take(table: CostTable, entry: dict[str, Any]) -> None:
    match entry:
        case {"machine": machine}:
            table.machine = Machine.from_json(machine)
        case {"tuned": str(precision)}:
            table.tuned |= {precision}
        case {"case": [*fields], "ms": _}:
            case: dict[str, Any] = dict(zip(_CASE_FIELDS, fields, strict=True))
            case["padding"] = tuple(map(tuple, case["padding"]))
            _add(table, LayerCase(**case), entry)
        case {"transition": [*fields], "ms": _}:
            _add(table, Transition(*fields), entry)
        case _:
            raise ValueError(f"got {entry}")


def _add(table: CostTable, measured: Measurable, entry: dict[str, Any]) -> None:
    times = [float(entry[name]) for name in ("ms", "reference_ms") if name in entry]
    sizes = [getattr(measured, name) for name in _SIZES[type(measured)]]
    if not all(0 < number < math.inf for number in (*times, *sizes)):
        raise ValueError(f"got {entry}")
    if isinstance(measured, LayerCase) and min(measured.out_shape) < 1:  # which the padding decides, too
        raise ValueError(f"got {entry}")
    table.add(measured, *times)


@contextlib.contextmanager
def recording(table: CostTable, path: Path) -> Iterator[Callable[[Measurable, float, float], None]]:
    """Yields a function that adds a measurement to `table` as `CostTable.add` does and, immediately, to its file.

    Raises:
      OSError: if the file can't be written; the function raises it, too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:  # without a buffer, whose rest closing would write
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):  # an incomplete last line is left out; another process may append
            file.write(b"\n")
        if b"\n" not in content:
            table.machine = this_machine(table.platform)
            file.write(json.dumps({"machine": dataclasses.asdict(table.machine)}).encode() + b"\n")

        def keep(measured: Measurable, milliseconds: float, reference_ms: float) -> None:
            table.add(measured, milliseconds, reference_ms)
            file.write(line_of(measured, milliseconds, reference_ms).encode() + b"\n")

        yield keep


def mark_as_tuned(table: CostTable, path: Path, precision: str) -> None:
    """Notes in a table and in its file that `--tune` measured all that it wanted in a precision."""
    table.tuned |= {precision}
    with path.open("a") as file:
        file.write(json.dumps({"tuned": precision}) + "\n")


def line_of(measured: Measurable, milliseconds: float, reference_ms: float | None = None) -> str:
    """Formats a measurement as a line of a table's file."""
    kind = "transition" if isinstance(measured, Transition) else "case"
    entry = {kind: list(dataclasses.astuple(measured)), "ms": round(milliseconds, 4)}
    return json.dumps(entry if reference_ms is None else entry | {"reference_ms": round(reference_ms, 4)})
