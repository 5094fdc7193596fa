"""The files that show accuracy: a table of the classes and a picture of the confusion matrix."""

from pathlib import Path

import numpy as np

from cambrian.commands.accuracy.accuracy import Accuracy
from cambrian.commands.output import CLASSES, CONFUSION
from cambrian.sharding.host.files import replace_file


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
