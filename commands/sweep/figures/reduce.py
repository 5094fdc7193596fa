"""From the whole grid to mesh × threads: the best over what else a sweep varies."""

from collections.abc import Sequence
from typing import Any

from cambrian.commands.sweep.grid import Grid
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.ranking import Standing


def by_mesh_and_threads(
    grid: Grid, standings: Sequence[Standing], objective: Objective
) -> dict[tuple[Any, Any], Standing]:
    """(mesh, threads) → its best standing; one that has failed only where all have."""
    chosen: dict[tuple[Any, Any], Standing] = {}
    for standing in standings:
        place = standing.cell["mesh"], standing.cell["threads"]
        known = chosen.get(place)
        if known is None or _order(standing, objective) < _order(known, objective):
            chosen[place] = standing
    return chosen


def _order(standing: Standing, objective: Objective) -> tuple[bool, bool, float]:
    return not standing.reports, not standing.complete, objective.cost(standing.median(objective.key))


def others_note(grid: Grid) -> str:
    """What a picture by mesh and threads shows of the other axes; empty if none is varied."""
    others = [flag for flag in grid.varied if flag not in ("mesh", "threads")]
    return f"best over {', '.join(others)}" if others else ""
