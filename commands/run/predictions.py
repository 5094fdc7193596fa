"""predictions.csv: what each image was classified as, in input order."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from cambrian.commands.output import csv_text
from cambrian.commands.run.classify import Prediction

_HEADER = ("image", "label", "predicted", "probability")


class PredictionFile:
    """Writes predictions.csv as batches finish, by whole batches: a batch that doesn't fit on the disk is undone.

    A context manager that on exit writes the file through to the disk. Names that aren't Unicode are written with
    backslash escapes.

    Raises:
      OSError: naming the path, if it can't be written.
    """

    def __init__(self, path: Path):
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._size = 0
        try:
            self._append([_HEADER])
        except BaseException:
            os.close(self._descriptor)
            raise

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Appends a batch's predictions."""
        self._append([(p.image, p.label or "", p.predicted, f"{p.probability:.6f}") for p in predictions])

    def _append(self, rows: Sequence[Sequence[str]]) -> None:
        left = memoryview(csv_text(rows).encode(errors="backslashreplace"))
        num_bytes = len(left)
        try:
            while left:  # a nearly full disk takes a part first
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        self._size += num_bytes

    def __enter__(self) -> "PredictionFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            if kind is None:
                raise OSError(error.errno, error.strerror, str(self._path)) from None
        finally:
            os.close(self._descriptor)
