"""The files of cost tables, and those by which plans are made on this machine.

A table's file holds one JSON value a line, so that a measurement cut short loses nothing: first what it was measured
on, then `{"case": [the fields of LayerCase], "ms": …}` and
`{"transition": [operation, mesh, values, dtype], "ms": …}`.
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
    """The tables by which plans are made here, each for what those before it lack.

    The one measured on this machine; the shipped one of this CPU model; and the shipped one that has most.
    """
    of_this_model = [path for path in sorted(_SHIPPED.glob("*.jsonl")) if _machine(path)["device"] == cpu_model()]
    files = [own_table_path(platform), *of_this_model, _MOST_COMPLETE]
    return [path for path in dict.fromkeys(files) if path.exists()]


def current_cost_table(platform: str) -> CostTable:
    """The cost table by which plans are made here, of the files in force.

    Raises:
      UsageError: if one can't be read.
    """
    first, *others = (read_table(path, platform) for path in files_in_force(platform))
    return functools.reduce(CostTable.filled_up, others, first)


def read_table(path: Path, platform: str) -> CostTable:
    """Reads a table's file; one that doesn't exist, or was measured on another platform, gives an empty table.

    Raises:
      UsageError: naming file and line, if it can't be read.
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
            if number == len(lines):  # a measurement was cut short while this line was written
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
    """The line of a table's file that holds a measurement."""
    kind = "transition" if isinstance(measured, Transition) else "case"
    return json.dumps({kind: list(dataclasses.astuple(measured)), "ms": round(milliseconds, 4)})
