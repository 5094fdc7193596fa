"""The style of a sweep's pictures, and how they are saved."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cambrian.commands.output import write_figure

# Okabe and Ito, "Color Universal Design" (2008), for any colour vision; without yellow, which is too light for lines.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 2)))
HATCHES = ("", "///", "...", "xx", "\\\\\\")
_RESOLUTION = 150


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Gives every picture the same fonts, sizes and ids, independent of the user's settings."""
    settings: Any = {
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "font.size": 10.0,
        "grid.alpha": 0.3,
        "hatch.linewidth": 0.6,
        "svg.hashsalt": "cambrian",
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def fit_height(axes: Axes) -> str:
    """Starts the vertical axis at 0, or where the values start if they are close together.

    Returns:
      A note if it doesn't start at 0, else an empty text.
    """
    low, high = axes.dataLim.y0, axes.dataLim.y1
    if not math.isfinite(high):  # without data
        axes.set_ylim(0, 1)
        return ""
    is_close = high / 2 < low < high
    room = 0.06 * (high - low if is_close else high)  # for the topmost marker
    axes.set_ylim(low - room if is_close else 0, high + room or None)
    return "not from 0" if is_close else ""


def line_style(number: int) -> dict[str, Any]:
    """Returns colour, marker and line of series `number`, from 0; all three are distinct up to seven series.

    From there on, colour and marker together are.
    """
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[(number + number // len(COLORS)) % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
    }


def save(figure: Figure, stem: Path) -> Path:
    """Writes `stem`.png and `stem`.svg, and returns the latter."""
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
        write_figure(figure, stem.with_suffix(suffix), dpi=_RESOLUTION, metadata=metadata)
    return stem.with_suffix(".svg")
