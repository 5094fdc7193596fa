"""Curves of measurements over a doubling quantity, told apart by colour, marker and dash, and so in grey too."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from cambrian.commands.sweep.figures.style import start_at_zero

# Okabe and Ito's blue and orange ("Color Universal Design", 2008), which differ in lightness as well.
_STYLES = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#E69F00", "marker": "s", "linestyle": "--"},
)


@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    """A legend's name, and place on the axis → one measurement for each round."""

    name: str
    points: Mapping[int, Sequence[float]]


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """Curves over one axis; `tick` writes a place on it."""

    axis: str
    curves: Sequence[Curve]
    tick: Callable[[int], str] = str


def draw(panels: Sequence[Panel], label: str, level: float, level_name: str, title: str, stem: Path) -> None:
    """Draws medians, with bars from least to greatest, beside each other on one scale; writes STEM.png and STEM.svg.

    Args:
      label: of the vertical axis.
      level: a horizontal line in all panels, named `level_name`.
    """
    figure = Figure(figsize=(4.2 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for panel, ax in zip(panels, axes, strict=True):
        ax.axhline(level, color="0.4", linestyle=":", linewidth=1.2, label=level_name)
        for curve, style in zip(panel.curves, _STYLES, strict=False):
            rounds = list(curve.points.values())
            medians = [statistics.median(measured) for measured in rounds]
            below = [median - min(measured) for median, measured in zip(medians, rounds, strict=True)]
            above = [max(measured) - median for median, measured in zip(medians, rounds, strict=True)]
            ax.errorbar(list(curve.points), medians, (below, above), label=curve.name, capsize=3, **style)
        places = sorted({place for curve in panel.curves for place in curve.points})
        ax.set_xscale("log", base=2)
        ax.set_xticks(places, map(panel.tick, places))
        ax.minorticks_off()
        ax.set_xlabel(panel.axis)
        ax.grid(axis="y", color="0.9")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize="small")
    axes[0].set_ylabel(label)
    start_at_zero(max(axes, key=lambda ax: ax.dataLim.y1))
    figure.suptitle(title, fontsize="medium")
    for suffix in ("png", "svg"):
        figure.savefig(stem.with_suffix(f".{suffix}"), dpi=150)
