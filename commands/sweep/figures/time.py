"""The paper's Figure 1: time against host threads, one line for each mesh."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cambrian.commands.sweep.figures.reduce import by_mesh_and_threads, others_note
from cambrian.commands.sweep.figures.style import line_style, start_at_zero
from cambrian.commands.sweep.grid import Grid
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.ranking import NOT_RUN, PRUNED, Standing
from cambrian.commands.sweep.result import OVERFLOW

_LANE = 0.055  # height of a row of words above the axes, as a share of theirs


def time_against_threads(grid: Grid, standings: Sequence[Standing], objective: Objective) -> Figure:
    """Median wall time in seconds with the range seen; above the axes, a row of words where a mesh has no time.

    What was measured with fewer images than the configuration has is left out.
    """
    figure = Figure(figsize=(7.2, 4.8))
    axes = figure.add_subplot()
    chosen = by_mesh_and_threads(grid, standings, objective)
    threads, meshes = grid.values("threads"), grid.values("mesh")
    failed_rows = 0
    for number, mesh in reversed(list(enumerate(meshes))):
        look = line_style(number)
        of_mesh = [(count, chosen[mesh, count]) for count in threads]
        _draw_line(axes, str(mesh), of_mesh, look)
        failed = [(count, s) for count, s in of_mesh if not s.reports and s.status not in (NOT_RUN, PRUNED)]
        if failed:
            _draw_words(axes, str(mesh), failed, 1.01 + _LANE * (failed_rows + 0.5), look["color"])
            failed_rows += 1
    axes.set_xticks(threads)
    axes.set_xlabel("host threads")
    note = others_note(grid)
    axes.set_ylabel(f"time in s ({note})" if note else "time in s")
    start_at_zero(axes)
    handles, labels = axes.get_legend_handles_labels()
    title = "mesh\nmodel × data" + ("\n\nOOM: out of\nmemory" if failed_rows else "")
    axes.legend(handles[::-1], labels[::-1], title=title, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
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
    place = axes.get_xaxis_transform()
    for count, standing in failed:
        word = "OOM" if standing.status == OVERFLOW else standing.status.replace("_", " ")
        axes.text(
            count, height, word, transform=place, color=color, fontsize=8, ha="center", va="center", clip_on=False
        )
    axes.text(1.01, height, mesh, transform=axes.transAxes, color=color, fontsize=8, va="center", clip_on=False)
