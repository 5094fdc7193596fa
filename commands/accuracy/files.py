"""What a run leaves of its accuracy beside the report: a table of the classes and a picture of the confusion matrix."""

from pathlib import Path

import numpy as np

from cambrian.commands.accuracy.accuracy import Accuracy
from cambrian.engine.files import replace_file

CLASSES, CONFUSION = "classes.csv", "confusion.png"


def write_accuracy(output_dir: Path, accuracy: Accuracy, confusion: np.ndarray, title: str, suffix: str = "") -> None:
    """Writes classes.csv and confusion.png.

    Args:
      confusion: (classes, classes), number of images by label and prediction.
      title: of the picture.
      suffix: goes before the names' dots, where a folder holds several.
    """
    from cambrian.commands.accuracy.confusion import (
        draw_confusion,  # matplotlib takes half a second, which other runs needn't wait for
    )

    classes, picture = (output_dir / name.replace(".", f"{suffix}.") for name in (CLASSES, CONFUSION))
    replace_file(classes, accuracy.classes_csv())
    draw_confusion(confusion, [entry.label for entry in accuracy.classes], title, picture)
