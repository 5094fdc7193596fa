"""The pictures of a sweep, as PNG and SVG; markers, line styles and hatching distinguish series in grey."""

from collections.abc import Sequence
from pathlib import Path

from cambrian.commands.sweep.figures.mesh_threads import heat_map, time_against_threads
from cambrian.commands.sweep.figures.pareto import pareto
from cambrian.commands.sweep.figures.phases import phase_split
from cambrian.commands.sweep.figures.style import save, style
from cambrian.commands.sweep.grid import Grid
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.ranking import Standing


def draw_figures(
    grid: Grid, standings: Sequence[Standing], best: Sequence[Standing], objective: Objective, folder: Path
) -> dict[str, Path]:
    """Draws the pictures for which there are results into `folder`, each as NAME.png and NAME.svg.

    Returns:
      Caption → path of the SVG.
    """
    folder.mkdir(exist_ok=True)
    measured = [standing for standing in standings if standing.reports]
    drawn: dict[str, Path] = {}
    with style():
        if len(grid.values("threads")) > 1:
            figure = time_against_threads(grid, standings, objective)
            drawn["Time against host threads, a line for each mesh"] = save(figure, folder / "time_against_threads")
        if len(grid.values("threads")) > 1 or len(grid.values("mesh")) > 1:
            figure = heat_map(grid, standings, objective)
            drawn["Throughput by mesh and host threads"] = save(figure, folder / "throughput")
        if measured:
            drawn["Throughput against latency"] = save(pareto(measured, best), folder / "pareto")
            drawn["Where the host threads spend their time"] = save(phase_split(measured), folder / "phases")
    return drawn
