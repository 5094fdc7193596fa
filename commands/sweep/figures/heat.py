"""Throughput by mesh and host threads, as a heat map with its numbers."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cambrian.commands.sweep.figures.reduce import by_mesh_and_threads, others_note
from cambrian.commands.sweep.grid import Grid
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.ranking import Standing
from cambrian.commands.sweep.result import OVERFLOW
from cambrian.commands.sweep.text import number

_WORDS = {OVERFLOW: "overflow", "not_run": "", "pruned": "left out"}


def heat_map(grid: Grid, standings: Sequence[Standing], objective: Objective) -> Figure:
    """Median images/s of each mesh (rows) and number of threads (columns); hatched with a word where there is none."""
    meshes, threads = grid.values("mesh"), grid.values("threads")
    chosen = by_mesh_and_threads(grid, standings, objective)
    speed = np.array(
        [[chosen[mesh, count].median("images_per_second") or np.nan for count in threads] for mesh in meshes]
    )
    figure = Figure(figsize=(2.2 + 0.75 * max(len(threads), 4), 1.6 + 0.5 * max(len(meshes), 3)))
    axes = figure.add_subplot()
    axes.grid(visible=False)
    drawn = axes.imshow(np.ma.masked_invalid(speed), cmap="cividis", aspect="auto")
    middle = (np.nanmin(speed) + np.nanmax(speed)) / 2 if np.isfinite(speed).any() else 0.0
    for row, mesh in enumerate(meshes):
        for column, count in enumerate(threads):
            value = speed[row, column]
            if np.isfinite(value):
                text, color = number(value), "white" if value < middle else "black"
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
        figure.colorbar(drawn, ax=axes, label="images/s" + (f", {others_note(grid)}" if others_note(grid) else ""))
    return figure
