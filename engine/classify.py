"""Classifies a source's images: batches for the executor, predictions.csv in input order, accuracy."""

import csv
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from engine.executable import Executable
from engine.executor import stream
from engine.inputs import ImageSource, UnreadableImage
from engine.metrics import Timeline
from engine.topk import top_k

_TOP = 5


@dataclasses.dataclass(slots=True)
class Tally:
    """What the finished part of a run adds up to.

    Attributes:
      num_images: images classified.
      skipped: what was wrong with each image that could not be read.
      top1_hits, top5_hits: images whose label was the most probable class, or among the five most probable.
      confusion: (classes, classes), images by label and prediction; None where labels don't number the logits.
    """

    num_images: int = 0
    skipped: list[str] = dataclasses.field(default_factory=list)
    top1_hits: int = 0
    top5_hits: int = 0
    confusion: np.ndarray | None = None


@dataclasses.dataclass(slots=True)
class _Batch:
    """Indices into the source; a host thread fills in what it read."""

    indices: range
    names: list[str] = dataclasses.field(default_factory=list)
    labels: list[int | None] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)


def classify(
    executable: Executable,
    source: ImageSource,
    predictions: Path,
    tally: Tally,
    timeline: Timeline,
    *,
    threads: int,
    skip_bad_images: bool,
    on_first_result: Callable[[], None],
) -> None:
    """Runs every image through the executable and writes `predictions` (image, label, predicted, probability).

    `tally` and the file hold what is finished also when an exception ends the run.

    Args:
      on_first_result: called once, when the first batch's logits are on the host and its predictions made.

    Raises:
      UnreadableImage: for an image that can't be read, unless `skip_bad_images`.
    """
    labels = tuple(executable.metadata.get("labels", ()))
    class_names = source.class_names or labels
    # Logits and labels are numbered alike if they are as many; then one set of names serves both.
    predicted_names = class_names if numbered_alike(executable, source) else labels
    if numbered_alike(executable, source) and source.has_labels:
        tally.confusion = np.zeros((len(class_names), len(class_names)), np.int64)

    def decode(batch: _Batch) -> np.ndarray:
        pixels = []
        for index in batch.indices:
            try:
                image = source[index]
            except UnreadableImage as error:
                if not skip_bad_images:
                    raise
                batch.skipped.append(f"{error.name}: {error.reason}")
                continue
            pixels.append(image.pixels)
            batch.names.append(image.name)
            batch.labels.append(image.label)
        return np.stack(pixels) if pixels else np.empty((0, *executable.input_spec.shape[1:]), np.uint8)

    def postprocess(batch: _Batch, logits: np.ndarray) -> tuple[_Batch, np.ndarray, np.ndarray]:
        return batch, *top_k(logits, _TOP)

    with (
        predictions.open("w", newline="", encoding="utf-8") as file,
        tqdm(total=len(source), unit="image", disable=None, leave=False) as progress,
    ):
        rows = csv.writer(file)
        rows.writerow(["image", "label", "predicted", "probability"])
        results = stream(
            executable,
            _batches(len(source), executable.batch_size),
            threads=threads,
            decode=decode,
            postprocess=postprocess,
            timeline=timeline,
        )
        try:
            for batch, classes, probabilities in results:
                if tally.num_images == 0 and batch.names:
                    on_first_result()
                for name, label, predicted, probability in zip(
                    batch.names, batch.labels, classes, probabilities, strict=True
                ):
                    rows.writerow(
                        [
                            name,
                            "" if label is None else _name(class_names, label),
                            _name(predicted_names, int(predicted[0])),
                            f"{probability[0]:.6f}",
                        ]
                    )
                    tally.top1_hits += int(label is not None and label == predicted[0])
                    tally.top5_hits += int(label is not None and label in predicted)
                    if tally.confusion is not None:
                        tally.confusion[label, predicted[0]] += 1
                tally.num_images += len(batch.names)
                tally.skipped += batch.skipped
                progress.update(len(batch.indices))
        finally:
            results.close()


def numbered_alike(executable: Executable, source: ImageSource) -> bool:
    """Whether the source's labels number the executable's logits."""
    return source.class_names is not None and len(source.class_names) == executable.output_spec.shape[1]


def _batches(num_images: int, batch_size: int) -> Iterator[Any]:
    for start in range(0, num_images, batch_size):
        yield _Batch(range(start, min(start + batch_size, num_images)))


def _name(names: tuple[str, ...], index: int) -> str | int:
    return names[index] if index < len(names) else index
