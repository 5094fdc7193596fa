"""A picture of the confusion matrix."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cambrian.commands.output import write_figure

_MAX_NUMBERED = 20  # classes whose cells can hold a number
_LETTERS_AN_INCH = 11  # of a title
_MAX_NAMED = 60  # classes whose names can be read


def draw_confusion(confusion: np.ndarray, names: Sequence[str], title: str, path: Path) -> None:
    """Draws how often images of each class (rows) were predicted as each class (columns).

    Only classes with images have a row and a column; one column holds the predictions of all others.

    Colours show shares of a row, in a scale that works in grey and with any colour vision; numbers count images.

    Args:
      confusion: (classes, classes), number of images.
      path: the PNG file.
    """
    confusion, rows, columns = with_images(confusion, names)
    num_classes = len(confusion)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    side = float(np.clip(2.5 + 0.45 * num_classes, 4.5, 12))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the class's images", shrink=0.8)
    if num_classes <= _MAX_NUMBERED:
        for row, column in np.ndindex(confusion.shape):
            if confusion[row, column]:
                colour = "white" if shares[row, column] > 0.5 else "black"
                text = str(confusion[row, column])
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    if num_classes <= _MAX_NAMED:
        axes.set_xticks(range(len(columns)), map(_short, columns), rotation=90, parse_math=False)
        axes.set_yticks(range(len(rows)), map(_short, rows), parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.set_title(textwrap.fill(title, int(_LETTERS_AN_INCH * side), break_on_hyphens=False), parse_math=False)
    write_figure(figure, path)


def with_images(confusion: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str], list[str]]:
    """Keeps the classes that have images, and sums predictions of all others up in a last column.

    Returns:
      The matrix (classes with images, as many columns and one for the others), and the names of rows and columns.
    """
    present = confusion.sum(axis=1) > 0
    if present.all() or not present.any():
        return confusion, list(names), list(names)
    rows = [name for name, is_present in zip(names, present, strict=True) if is_present]
    others = confusion[present][:, ~present].sum(axis=1, keepdims=True)
    return np.hstack([confusion[present][:, present], others]), rows, [*rows, "other classes"]


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"
