"""The curves of a training, as a table and as a picture."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cambrian.commands.output import write_figure

_TRAIN, _TEST = "#0072B2", "#D55E00"  # Okabe and Ito's palette, for any colour vision; line styles differ too


def metrics_csv(epochs: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns a CSV table with a row per epoch, under the keys of the first; None becomes an empty cell."""
    text = io.StringIO(newline="")
    rows = csv.DictWriter(text, list(epochs[0]), lineterminator="\n")
    rows.writeheader()
    for epoch in epochs:
        rows.writerow({name: repr(value) if isinstance(value, float) else value for name, value in epoch.items()})
    return text.getvalue().encode()


def draw_curves(epochs: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draws loss, accuracy and learning rate over the epochs into a PNG file.

    Args:
      epochs: each with `epoch`, `train_loss`, `train_accuracy`, `test_loss`, `test_top1` and `learning_rate`.
    """
    figure = Figure(figsize=(10, 6), layout="constrained", dpi=120)
    upper, lower = figure.subplots(2, 2, sharex=True, gridspec_kw={"height_ratios": (4, 1)})
    panels = (
        (upper[0], "train_loss", "test_loss", "loss", 1),
        (upper[1], "train_accuracy", "test_top1", "accuracy, %", 100),
    )
    numbers = [epoch["epoch"] for epoch in epochs]
    for axes, train, test, label, factor in panels:
        axes.plot(numbers, [factor * e[train] for e in epochs], "-", color=_TRAIN, label="training, augmented images")
        evaluated = [e for e in epochs if e[test] is not None]
        values = [factor * e[test] for e in evaluated]
        axes.plot([e["epoch"] for e in evaluated], values, "o--", markersize=3, color=_TEST, label="evaluation")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
    upper[0].set_ylim(bottom=0)
    upper[1].set_ylim(0, 100)
    lower[0].plot(numbers, [epoch["learning_rate"] for epoch in epochs], color="black")
    lower[0].set_ylabel("learning rate")
    lower[1].plot(numbers, [epoch["images_per_second"] for epoch in epochs], color="black")
    lower[1].set_ylabel("images/s")
    for axes in lower:
        axes.set_ylim(bottom=0)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title, parse_math=False)  # paths may hold $
    write_figure(figure, path)
