"""Throughput against latency, and the configurations on the Pareto front."""

import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from cambrian.commands.sweep.figures.style import COLORS
from cambrian.commands.sweep.ranking import Standing

_MOST_LABELS = 8
_LETTERS = 40  # of a name on a line


def pareto_front(standings: Sequence[Standing]) -> list[Standing]:
    """Returns the standings that no other beats in both images/s and p99 latency, by latency."""
    front: list[Standing] = []
    for standing in sorted(standings, key=lambda s: (_latency(s), -_speed(s))):
        if not front or _speed(standing) > _speed(front[-1]):
            front.append(standing)
    return front


def pareto(measured: Sequence[Standing], best: Sequence[Standing]) -> Figure:
    """Draws a point per configuration, the Pareto front as a line, and marks the best."""
    figure = Figure(figsize=(7.2, 4.6))
    axes = figure.add_subplot()
    front = pareto_front([standing for standing in measured if standing.complete] or list(measured))
    eligible = [standing for standing in measured if standing.eligible]
    left_out = [standing for standing in measured if not standing.eligible]
    filled: dict[str, Any] = {"facecolor": COLORS[6], "edgecolor": "black", "linewidth": 0.6}
    crossed: dict[str, Any] = {"marker": "x", "color": "#777777"}
    for group, label, look in (
        (eligible, "configuration", filled),
        (left_out, "breaks a constraint", crossed),
    ):
        if group:
            axes.scatter([_latency(s) for s in group], [_speed(s) for s in group], label=label, **look)
    axes.plot(
        [_latency(s) for s in front],
        [_speed(s) for s in front],
        color=COLORS[1],
        linestyle="--",
        marker="s",
        markerfacecolor="none",
        markersize=9,
        label="not beaten in both",
    )
    if best:
        axes.scatter(
            _latency(best[0]),
            _speed(best[0]),
            marker="*",
            s=260,
            color="black",
            zorder=3,
            label=textwrap.fill(f"best: {best[0].name}", _LETTERS),
        )
    middle = statistics.mean(function(map(_latency, measured)) for function in (min, max))
    for place, standing in enumerate(front[:_MOST_LABELS]):
        is_left = _latency(standing) <= middle
        axes.annotate(
            textwrap.fill(standing.name, _LETTERS),
            (_latency(standing), _speed(standing)),
            xytext=(8 if is_left else -8, -5 if place % 2 else -17),
            textcoords="offset points",
            ha="left" if is_left else "right",
            va="top",
            fontsize=8,
        )
    axes.set_xlabel("latency of a batch, p99 in ms")
    axes.set_ylabel("images/s")
    axes.margins(0.15)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _latency(standing: Standing) -> float:
    return standing.median("latency_ms_p99") or 0.0


def _speed(standing: Standing) -> float:
    return standing.median("images_per_second") or 0.0
