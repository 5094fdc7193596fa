"""The files of cost tables, and the tables in force on this machine.

A file holds one JSON value per line, so that an interrupted measurement loses nothing: first the machine, then
`{"case": [the fields of LayerCase], "ms": …}` and `{"transition": [operation, mesh, values, dtype], "ms": …}`.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from cambrian.models.costs.layer_case import LayerCase
from cambrian.models.costs.machine import own_table_path
from cambrian.models.costs.table import CostTable, Transition
from cambrian.sharding import UsageError
from cambrian.sharding.host import cpu_model

_SHIPPED = Path(__file__).parent / "shipped"
_MOST_COMPLETE = _SHIPPED / "amd_epyc.jsonl"


def files_in_force(platform: str) -> list[Path]:
    """Returns the tables in force here, by precedence; each supplies what the ones before it lack.

    These are the table measured on this machine, the shipped table of this CPU model, and the most complete shipped
    table.
    """
    same_model = [path for path in sorted(_SHIPPED.glob("*.jsonl")) if _machine(path)["device"] == cpu_model()]
    files = [own_table_path(platform), *same_model, _MOST_COMPLETE]
    return [path for path in dict.fromkeys(files) if path.exists()]


def current_cost_table(platform: str) -> CostTable:
    """Returns the cost table in force here, merged from `files_in_force`.

    Raises:
      UsageError: if a file can't be read.
    """
    first, *others = (read_table(path, platform) for path in files_in_force(platform))
    return functools.reduce(CostTable.filled_up, others, first)


def read_table(path: Path, platform: str) -> CostTable:
    """Reads the file of a table; returns an empty table if it doesn't exist or is of another platform.

    Raises:
      UsageError: if the file can't be read (names file and line).
    """
    table = CostTable(platform, {})
    try:
        lines = path.read_text().splitlines() if path.exists() else []
    except OSError as error:
        raise UsageError(f"a cost table must be readable, got {path}: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        try:
            _take(table, json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):  # the measurement was interrupted while it wrote this line
                break
            raise UsageError(f"line {number} of the cost table {path} must hold a measurement: {error}") from None
        if table.machine.get("platform", platform) != platform:
            return CostTable(platform, {})
    return table


def _take(table: CostTable, entry: dict[str, Any]) -> None:
    match entry:
        case {"machine": machine}:
            table.machine = machine
        case {"case": [*fields], "ms": milliseconds}:
            names = [field.name for field in dataclasses.fields(LayerCase)]
            case: dict[str, Any] = dict(zip(names, fields, strict=True))
            case["padding"] = tuple(case["padding"])
            table.add(LayerCase(**case), float(milliseconds))
        case {"transition": [*fields], "ms": milliseconds}:
            table.add(Transition(*fields), float(milliseconds))
        case _:
            raise ValueError(f"got {entry}")


def _machine(path: Path) -> dict[str, str]:
    with path.open() as file:
        return json.loads(file.readline())["machine"]


def line_of(measured: LayerCase | Transition, milliseconds: float) -> str:
    """Formats a measurement as a line of a table's file."""
    kind = "transition" if isinstance(measured, Transition) else "case"
    return json.dumps({kind: list(dataclasses.astuple(measured)), "ms": round(milliseconds, 4)})
