"""How pictures look and are saved."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cambrian.engine.files import replace_file

# Okabe and Ito, "Color Universal Design" (2008): told apart with any colour vision; yellow, too light a line, left out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 2)))
HATCHES = ("", "///", "...", "xx", "\\\\\\")
_RESOLUTION = 150


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The same fonts, sizes and ids for every picture, whatever the user's settings."""
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


def start_at_zero(axes: Axes) -> None:
    """Starts the vertical axis at 0, with room for the topmost marker: matplotlib's margin is a share of the range."""
    axes.set_ylim(0, 1.06 * axes.dataLim.y1)


def line_style(number: int) -> dict[str, Any]:
    """Colour, marker and line of the series `number`, counted from 0; all three differ up to seven series."""
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
    }


def save(figure: Figure, stem: Path) -> Path:
    """Writes `stem`.png and `stem`.svg, and returns the latter."""
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        data = io.BytesIO()
        figure.savefig(data, format=suffix, dpi=_RESOLUTION, metadata=metadata)
        replace_file(stem.with_suffix(f".{suffix}"), data.getvalue())
    return stem.with_suffix(".svg")
