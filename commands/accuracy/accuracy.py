"""How right predictions are: top-1 and top-5 with confidence intervals, the same for each class, and their files."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cambrian.commands.output import CLASSES, CONFUSION, csv_text
from cambrian.sharding.host.files import replace_file

_Z_95 = 1.959963984540054  # of the normal distribution, two-sided


@dataclasses.dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """One class.

    Attributes:
      num_images: of this class.
      recall: share of them that were predicted to be of it; None without images. `recall_interval_95` is its interval.
      precision: share of the images predicted to be of it that are; None without such predictions.
    """

    label: str
    num_images: int
    recall: float | None
    recall_interval_95: tuple[float, float] | None
    precision: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy over labelled images; fractions from 0 to 1, intervals by Wilson's score at 95% confidence."""

    num_images: int
    top1: float
    top1_interval_95: tuple[float, float]
    top5: float
    top5_interval_95: tuple[float, float]
    classes: tuple[ClassAccuracy, ...]

    @classmethod
    def of(cls, confusion: np.ndarray, top5_hits: int, names: Sequence[str]) -> "Accuracy":
        """Sums a confusion matrix up.

        Args:
          confusion: (classes, classes), number of images by label (row) and prediction (column); at least one.
          top5_hits: images whose label was among the five most probable classes.
          names: of the classes.
        """
        num_images, hits = int(confusion.sum()), confusion.diagonal()
        of_class, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
        classes = tuple(
            ClassAccuracy(
                label=name,
                num_images=int(of_class[index]),
                recall=float(hits[index] / of_class[index]) if of_class[index] else None,
                recall_interval_95=wilson_interval(int(hits[index]), int(of_class[index])) if of_class[index] else None,
                precision=float(hits[index] / predicted[index]) if predicted[index] else None,
            )
            for index, name in enumerate(names)
        )
        top1_hits = int(hits.sum())
        return cls(
            num_images=num_images,
            top1=top1_hits / num_images,
            top1_interval_95=wilson_interval(top1_hits, num_images),
            top5=top5_hits / num_images,
            top5_interval_95=wilson_interval(top5_hits, num_images),
            classes=classes,
        )

    def to_json(self) -> dict[str, Any]:
        """The same as JSON-compatible values."""
        return dataclasses.asdict(self)

    def classes_csv(self) -> bytes:
        """The table of the classes, a line each."""
        rows: list[list[Any]] = [["label", "num_images", "recall", "recall_low_95", "recall_high_95", "precision"]]
        for entry in self.classes:
            low, high = entry.recall_interval_95 or (None, None)
            values = (entry.recall, low, high, entry.precision)
            shown = ["" if value is None else f"{value:.6f}" for value in values]
            rows.append([entry.label, entry.num_images, *shown])
        return csv_text(rows).encode()


def wilson_interval(hits: int, num_trials: int) -> tuple[float, float]:
    """The 95% confidence interval of a proportion, from 0 to 1.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927). Unlike the normal
    approximation it holds near 0 and 1, where a good classifier is.
    """
    if not 0 <= hits <= num_trials or num_trials < 1:
        raise ValueError(f"a proportion needs 0 ≤ hits ≤ trials and a trial, got {hits} of {num_trials}")
    proportion, square = hits / num_trials, _Z_95**2 / num_trials
    centre = proportion + square / 2
    half = _Z_95 * math.sqrt(proportion * (1 - proportion) / num_trials + square / (4 * num_trials))
    low, high = (centre - half) / (1 + square), (centre + half) / (1 + square)
    # Rounding must not leave what is exact in theory.
    return (0.0 if hits == 0 else low), (1.0 if hits == num_trials else high)


def accuracy_text(found: Any) -> str:
    """Such as `top-1 91.20% (95% interval 90.63 to 91.74), top-5 …`; top-5 only where it isn't always right.

    Args:
      found: an `Accuracy`, or a report with its fields.
    """
    shares = [("top-1", found.top1, found.top1_interval_95)]
    if found.top5 is not None and len(found.classes) > 5:
        shares.append(("top-5", found.top5, found.top5_interval_95))
    return ", ".join(
        f"{name} {share:.2%} (95% interval {100 * low:.2f} to {100 * high:.2f})" for name, share, (low, high) in shares
    )


def write_accuracy(output_dir: Path, accuracy: Accuracy, confusion: np.ndarray, title: str, suffix: str = "") -> None:
    """Writes classes.csv and confusion.png.

    Args:
      confusion: (classes, classes), number of images by label and prediction.
      title: title of the picture.
      suffix: appended to the names, for a folder that holds several.
    """
    from cambrian.commands.accuracy.confusion import draw_confusion  # Matplotlib takes half a second to import

    classes, picture = (output_dir / name.replace(".", f"{suffix}.") for name in (CLASSES, CONFUSION))
    replace_file(classes, accuracy.classes_csv())
    draw_confusion(confusion, [entry.label for entry in accuracy.classes], title, picture)
