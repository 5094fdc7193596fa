"""Plots of measurements over a doubling quantity; curves differ in colour, marker and dash, so also in greyscale."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

# Okabe and Ito's blue and orange ("Color Universal Design", 2008), which differ in lightness as well.
_STYLES = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#E69F00", "marker": "s", "linestyle": "--"},
)


@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    """A named curve: position on the axis → one measurement per round."""

    name: str
    points: Mapping[int, Sequence[float]]


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """Curves over one axis; `tick` formats a position on it."""

    axis: str
    curves: Sequence[Curve]
    tick: Callable[[int], str] = str


def draw(panels: Sequence[Panel], label: str, level: float, level_name: str, title: str, stem: Path) -> None:
    """Draws panels side by side, as medians with bars from minimum to maximum, and writes STEM.png and STEM.svg.

    Args:
      panels: panels, which share the vertical axis.
      label: label of the vertical axis.
      level: value of a horizontal line in all panels.
      level_name: name of the line in the legend.
      title: title of the figure.
      stem: path of the files, without suffix.
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
    axes[0].set_ylim(0, 1.06 * max(ax.dataLim.y1 for ax in axes))  # room for the topmost marker
    figure.suptitle(title, fontsize="medium")
    for suffix in ("png", "svg"):
        figure.savefig(stem.with_suffix(f".{suffix}"), dpi=150)
