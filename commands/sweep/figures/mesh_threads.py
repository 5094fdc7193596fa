"""Pictures by mesh and host threads: the time of each (the paper's Figure 1), and throughput as a heat map."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cambrian.commands.sweep.figures.style import fit_height, line_style
from cambrian.commands.sweep.grid import Grid
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.ranking import NOT_RUN, PRUNED, Standing
from cambrian.commands.sweep.result import OVERFLOW
from cambrian.commands.sweep.text import number

_WIDE = 32  # times as many threads as the fewest, from where on the axis is logarithmic
_LANE = 14  # height of a row of words above the axes, in points
_WORDS = {OVERFLOW: "overflow", NOT_RUN: "", PRUNED: "left out"}


def time_against_threads(grid: Grid, standings: Sequence[Standing], objective: Objective) -> Figure:
    """Draws median wall times in seconds with their range, a line per mesh; failures are words above the axes.

    Configurations that were measured with fewer images are left out.
    """
    threads, meshes = sorted(grid.values("threads")), grid.values("mesh")
    figure = Figure(figsize=(7.2, max(4.8, 1.6 + 0.4 * len(meshes))))
    axes = figure.add_subplot()
    chosen = _by_mesh_and_threads(grid, standings, objective)
    failed_rows = 0
    for index, mesh in reversed(list(enumerate(meshes))):
        look = line_style(index)
        of_mesh = [(count, chosen[mesh, count]) for count in threads]
        _draw_line(axes, str(mesh), of_mesh, look)
        failed = [(count, s) for count, s in of_mesh if not s.reports and s.status not in (NOT_RUN, PRUNED)]
        if failed:
            _draw_words(axes, str(mesh), failed, _LANE * (failed_rows + 0.7), look["color"])
            failed_rows += 1
    axes.update_datalim([(threads[0], 0), (threads[-1], 0)], updatey=False)  # those without a time, too
    axes.margins(x=0.08)  # for the words
    if threads[-1] > _WIDE * threads[0]:
        axes.set_xscale("log")
    axes.set_xticks([], minor=True)
    axes.set_xticks(threads, list(map(str, threads)))
    axes.set_xlabel("host threads")
    notes = [note for note in (_others_note(grid), fit_height(axes)) if note]
    axes.set_ylabel(textwrap.fill(f"time in s ({'; '.join(notes)})" if notes else "time in s", 48))
    handles, labels = axes.get_legend_handles_labels()
    title = "mesh\nmodel × data" + ("\n\nOOM: out of\nmemory" if failed_rows else "")
    axes.legend(handles[::-1], labels[::-1], title=title, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return figure


def _draw_line(axes: Axes, mesh: str, of_mesh: list[tuple[int, Standing]], look: dict) -> None:
    measured = [(count, [value / 1e3 for value in s.values("wall_ms")], s) for count, s in of_mesh if s.complete]
    medians = [(standing.median("wall_ms") or 0.0) / 1e3 for _, _, standing in measured]
    below = [median - min(seen) for median, (_, seen, _) in zip(medians, measured, strict=True)]
    above = [max(seen) - median for median, (_, seen, _) in zip(medians, measured, strict=True)]
    axes.errorbar(
        [count for count, _, _ in measured], medians, yerr=(below, above), capsize=2, markersize=5, label=mesh, **look
    )


def _draw_words(axes: Axes, mesh: str, failed: list[tuple[int, Standing]], height: float, color: str) -> None:
    look: dict[str, Any] = {"textcoords": "offset points", "color": color, "fontsize": 8, "va": "center"}
    place = axes.get_xaxis_transform()
    for count, standing in failed:
        word = "OOM" if standing.status == OVERFLOW else standing.status.replace("_", " ")
        axes.annotate(word, (count, 1), xycoords=place, xytext=(0, height), ha="center", **look)
    axes.annotate(mesh, (1.01, 1), xycoords="axes fraction", xytext=(0, height), **look)


def heat_map(grid: Grid, standings: Sequence[Standing], objective: Objective) -> Figure:
    """Draws median images/s by mesh (rows) and host threads (columns); a cell without a result is hatched."""
    meshes, threads = grid.values("mesh"), grid.values("threads")
    chosen = _by_mesh_and_threads(grid, standings, objective)
    speed = np.array(
        [[chosen[mesh, count].median("images_per_second") or np.nan for count in threads] for mesh in meshes]
    )
    figure = Figure(figsize=(2.2 + 0.75 * max(len(threads), 4), 1.6 + 0.5 * max(len(meshes), 3)))
    axes = figure.add_subplot()
    axes.grid(visible=False)
    fastest = np.nanmax(speed) if np.isfinite(speed).any() else 1.0
    shown = np.ma.masked_invalid(speed)
    drawn = axes.imshow(shown, cmap="cividis", aspect="auto", vmin=0, vmax=fastest)  # from 0: equal speeds look equal
    for row, mesh in enumerate(meshes):
        for column, count in enumerate(threads):
            value = speed[row, column]
            if np.isfinite(value):
                text, color = number(value), "white" if value < fastest / 2 else "black"
            else:
                text, color = _WORDS.get(chosen[mesh, count].status, "failed"), "black"
                axes.add_patch(
                    Rectangle(
                        (column - 0.5, row - 0.5), 1, 1, facecolor="white", edgecolor="#888888", hatch="///", lw=0
                    )
                )
            box = None if np.isfinite(value) else {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9, bbox=box if text else None)
    axes.set_xticks(range(len(threads)), [str(count) for count in threads])
    axes.set_yticks(range(len(meshes)), [str(mesh) for mesh in meshes])
    axes.set_xlabel("host threads")
    axes.set_ylabel("mesh, model × data")
    if np.isfinite(speed).any():
        label = ", ".join(filter(None, ("images/s", _others_note(grid))))
        figure.colorbar(drawn, ax=axes, label=textwrap.fill(label, 32))
    return figure


def _by_mesh_and_threads(
    grid: Grid, standings: Sequence[Standing], objective: Objective
) -> dict[tuple[Any, Any], Standing]:
    """Returns (mesh, threads) → its best standing, a failed one only if all have failed."""
    chosen: dict[tuple[Any, Any], Standing] = {}
    for standing in standings:
        place = standing.cell["mesh"], standing.cell["threads"]
        known = chosen.get(place)
        if known is None or _order(standing, objective) < _order(known, objective):
            chosen[place] = standing
    return chosen


def _order(standing: Standing, objective: Objective) -> tuple[bool, bool, float]:
    return not standing.reports, not standing.complete, objective.cost(standing.median(objective.key))


def _others_note(grid: Grid) -> str:
    others = [flag for flag in grid.varied if flag not in ("mesh", "threads")]
    return f"best over {', '.join(others)}" if others else ""
