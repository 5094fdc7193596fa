"""Compares the findings of the paper with the results of a sweep over the same grid.

The paper runs ResNet101 on an accelerator of 32 cores, with five splits of the cores (model × data 2/16, 4/8, 8/4,
16/2, 32/1) times 2 to 16 host threads, and omits configurations that overflow memory.
"""

import dataclasses
import statistics
from collections.abc import Sequence

from cambrian.commands.sweep.grid import Grid
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.ranking import UNSTABLE_ABOVE, Standing, best_group
from cambrian.commands.sweep.text import number

_PAPER_BEST = "4x8"


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """A finding of the paper, and the corresponding result here."""

    paper: str
    here: str


def findings(grid: Grid, standings: Sequence[Standing]) -> list[Finding]:
    """Returns the paper's findings beside ours; none unless the sweep varies mesh and threads and has results."""
    if not {"mesh", "threads"} <= set(grid.varied):
        return []
    by_time = Objective("wall_ms")
    measured = [standing for standing in standings if standing.reports and standing.complete]
    if not measured:
        return []
    measured.sort(key=lambda standing: by_time.cost(standing.median("wall_ms")))
    split = [Finding(f"the best split is {_PAPER_BEST.replace('x', '/')}", _best_split(measured))]
    return (split if _PAPER_BEST in grid.values("mesh") else []) + [
        Finding("more host threads are slower", _effect_of_threads(grid, measured)),
        Finding("some settings overflow memory and are left out", _overflows(standings)),
    ]


def _best_split(measured: Sequence[Standing]) -> str:
    eligible = [dataclasses.replace(standing, eligible=True) for standing in measured]
    group = best_group(eligible, Objective("wall_ms"))
    meshes = list(dict.fromkeys(str(standing.cell["mesh"]) for standing in group))
    text = f"the fastest is {group[0].name}: {number(group[0].median('wall_ms'))} ms"
    if len(meshes) > 1:
        text += f"; within noise of it are mesh {', '.join(meshes[1:])}"
    if _PAPER_BEST not in meshes:
        paper = [standing for standing in measured if standing.cell["mesh"] == _PAPER_BEST]
        if paper:
            ratio = (paper[0].median("wall_ms") or 0.0) / (group[0].median("wall_ms") or 1.0)
            text += f"; the best of {_PAPER_BEST} takes {ratio:.2f} times as long"
    return text


def _effect_of_threads(grid: Grid, measured: Sequence[Standing]) -> str:
    fewest_of: dict[object, dict[int, float]] = {}
    for standing in measured:
        rest = tuple(pair for pair in standing.cell.values if pair[0] != "threads")
        fewest_of.setdefault(rest, {})[standing.cell["threads"]] = standing.median("wall_ms") or 0.0
    ratios = [times[max(times)] / times[min(times)] for times in fewest_of.values() if len(times) > 1]
    if not ratios:
        return "not measured at more than one number of threads"
    middle = statistics.median(ratios)
    counts = grid.values("threads")
    verdict = "slower" if middle > 1 + UNSTABLE_ABOVE else "faster" if middle < 1 - UNSTABLE_ABOVE else "neither"
    return (
        f"{verdict}: from the fewest to the most threads ({min(counts)} to {max(counts)} where measured), the time "
        f"changes by a factor of {middle:.2f} (median over the meshes, {min(ratios):.2f} to {max(ratios):.2f})"
    )


def _overflows(standings: Sequence[Standing]) -> str:
    overflowed = [standing.name for standing in standings if standing.overflow]
    return f"{len(overflowed)} of {len(standings)} overflow" + (f": {'; '.join(overflowed)}" if overflowed else "")
