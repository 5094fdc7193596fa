"""How the host threads spend their time, by configuration."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cambrian.commands.sweep.figures.style import COLORS, HATCHES
from cambrian.commands.sweep.ranking import Standing
from cambrian.engine.runtime.metrics import PHASES

_MOST_BARS = 40


def phase_split(measured: Sequence[Standing]) -> Figure:
    """Draws shares of the threads' total time, the best configuration on top, with the share outside `execute`."""
    shown = measured[:_MOST_BARS]
    times = np.array([[standing.median(f"{phase}_ms") or 0.0 for phase in PHASES] for standing in shown])
    totals = times.sum(axis=1, keepdims=True)
    shares = 100 * times / np.where(totals > 0, totals, 1)
    longest = max(len(standing.name) for standing in shown)
    figure = Figure(figsize=(max(7.2, 5 + 0.065 * longest), 1.5 + 0.24 * len(shown)))
    axes = figure.add_subplot()
    axes.grid(axis="y", visible=False)
    left = np.zeros(len(shown))
    for number, phase in enumerate(PHASES):
        axes.barh(
            range(len(shown)),
            shares[:, number],
            left=left,
            color=COLORS[number] if phase != "execute" else "#DDDDDD",
            hatch=HATCHES[number] if phase != "execute" else "",
            edgecolor="white" if phase != "execute" else "#999999",
            linewidth=0.3,
            label=phase.replace("_", " "),
        )
        left += shares[:, number]
    host = 100 - shares[:, PHASES.index("execute")]
    for row, share in enumerate(host):
        axes.text(101, row, f"{share:.1f} % not execute", va="center", fontsize=8)
    axes.set_yticks(range(len(shown)), [standing.name for standing in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the threads' time in %")
    if len(measured) > len(shown):
        axes.set_title(f"the best {len(shown)} of {len(measured)}", fontsize=10)
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=8)
    return figure
