"""Classifies images: batches for the host threads, predictions in input order, and their tally."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np

from cambrian.commands.accuracy.top_k import top_k
from cambrian.commands.console import counted
from cambrian.commands.images import ImageSource, ModelImages, UnreadableImage, for_model
from cambrian.engine.artifact.manifest import Manifest
from cambrian.engine.cards import Cards
from cambrian.engine.hosts import SharedExecutable
from cambrian.engine.runtime.executable import Executable
from cambrian.engine.runtime.metrics import Timeline
from cambrian.engine.runtime.stream import stream
from cambrian.sharding import Preprocessing, TensorSpec, UsageError

_TOP = 5
_SUM_ERROR = 1e-2  # of probabilities in bfloat16


class Prediction(NamedTuple):
    """The classification of an image.

    Attributes:
      image: name in its source.
      label: name of its class; None without one.
      predicted: name of the most probable class.
      probability: of that class, from 0 to 1.
      label_index: index of the label among the class names; None without one.
      top_indices: indices of the five most probable logits, the most probable first.
      top_probabilities: their probabilities.
    """

    image: str
    label: str | None
    predicted: str
    probability: float
    label_index: int | None
    top_indices: tuple[int, ...]
    top_probabilities: tuple[float, ...]


class Skipped(NamedTuple):
    """An image that can't be read: its index in the source, and why."""

    index: int
    error: UnreadableImage


@dataclasses.dataclass(slots=True)
class ClassifiedBatch:
    """The images of one launch.

    Attributes:
      indices: of the images in their source.
      predictions: of the readable images.
      skipped: the unreadable ones.
      by_process: number of predictions from each of several processes; empty for one.
      of_softmax: whether this process's outputs look like probabilities rather than logits.
    """

    indices: range
    predictions: list[Prediction] = dataclasses.field(default_factory=list)
    skipped: list[Skipped] = dataclasses.field(default_factory=list)
    by_process: list[int] = dataclasses.field(default_factory=list)
    of_softmax: bool = False


def check_classifier(executable: Executable | Cards | Manifest) -> None:
    """Raises UsageError if an executable, or the artefact of a manifest, isn't an image classifier."""
    name, metadata, outputs = executable.name, executable.metadata, executable.output_spec
    if missing := [fact for fact in ("labels", "preprocessing", "trained") if fact not in metadata]:
        raise UsageError(
            f"expected an image classifier, with labels, preprocessing and trained in its metadata, "
            f"got {name} without {', '.join(missing)}"
        )
    if not isinstance(outputs, TensorSpec) or len(outputs.shape) != 2:
        raise UsageError(f"an image classifier must return logits (N, classes), got {outputs!r:.200} of {name}")
    labels, num_classes = metadata["labels"], outputs.shape[1]
    are_texts = isinstance(labels, (list, tuple)) and all(isinstance(label, str) for label in labels)
    if not are_texts or len(labels) not in (0, num_classes):
        got = f"{len(labels)} labels" if are_texts else f"{labels!r:.80}"
        raise UsageError(f"the labels of {name} must be the names of all {num_classes} classes, or none, got {got}")
    if (facts := metadata.get("quantization")) is not None:
        shown = ("relative_error", "top1_agreement", "num_images")
        if not isinstance(facts, dict) or not all(isinstance(facts.get(fact), int | float) for fact in shown):
            raise UsageError(f"the quantization of {name} must have the numbers {', '.join(shown)}, got {facts!r:.80}")


def images_of(executable: Executable | Cards | Manifest, source: ImageSource) -> tuple[ModelImages, tuple[str, ...]]:
    """The source's images as the executable's model reads and numbers them, and human-readable notes.

    Raises:
      UsageError: if the executable isn't an image classifier, or a class isn't one of its labels.
    """
    check_classifier(executable)
    metadata = executable.metadata
    preprocessing = Preprocessing.from_json(metadata["preprocessing"], executable.name)
    if executable.input_spec.shape[1:3] != preprocessing.size:
        raise UsageError(
            f"{executable.name}: the size of its preprocessing must be that of its input, "
            f"{executable.input_spec.shape[1:3]}, got {preprocessing.size}"
        )
    images, notes = for_model(source, preprocessing, tuple(metadata["labels"]), executable.output_spec.shape[1])
    if numbered_alike(executable, images) and not metadata["trained"]:
        notes = (*notes, "no accuracy: the weights are random")
    return images, notes


def classify(
    executable: Executable | Cards,
    images: ModelImages,
    *,
    threads: int,
    skip_bad_images: bool = False,
    timeline: Timeline | None = None,
) -> Generator[ClassifiedBatch, None, None]:
    """Yields the predictions for all images, batch by batch, in input order.

    Where several processes share the executable's mesh, each calls this, decodes and ranks its part of every batch, and
    process 0 gets the predictions of all.

    Args:
      threads: number of host threads that decode, launch and rank.
      timeline: records the times of every batch.

    Raises:
      UnreadableImage: from the iterator, for an image that can't be read, unless `skip_bad_images`.
      ProcessEnded: from the iterator, if another process ended.
    """
    shared = executable if isinstance(executable, SharedExecutable) else None
    class_names = images.class_names or tuple(executable.metadata.get("labels", ()))
    predicted_names = logit_names(executable, images)

    def decode(batch: "_Batch") -> np.ndarray:
        pixels = []
        for index in batch.indices:
            try:
                image = images[index]
            except UnreadableImage as error:
                if not skip_bad_images:
                    hint = "skip_bad_images leaves such images out"
                    raise UnreadableImage(error.name, f"{error.reason}; {hint}") from error
                batch.skipped.append(Skipped(index, error))
                continue
            pixels.append(image.pixels)
            batch.names.append(image.name)
            batch.labels.append(image.label)
        if not pixels:  # all processes make the same launches
            return np.zeros((0 if shared is None else 1, *executable.input_spec.shape[1:]), np.uint8)
        return np.stack(pixels)

    def postprocess(batch: "_Batch", logits: np.ndarray) -> ClassifiedBatch:
        logits = logits[: len(batch.names)]
        classes, probabilities = top_k(logits, _TOP)
        predictions = [
            Prediction(
                name,
                None if label is None else name_of(class_names, label),
                name_of(predicted_names, top[0]),
                top_probabilities[0],
                label,
                tuple(top),
                tuple(top_probabilities),
            )
            for name, label, top, top_probabilities in zip(
                batch.names, batch.labels, classes.tolist(), probabilities.tolist(), strict=True
            )
        ]
        of_softmax = bool((logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=_SUM_ERROR))
        return ClassifiedBatch(batch.indices, predictions, batch.skipped, of_softmax=of_softmax)

    batches = stream(
        executable,
        _batches(len(images), executable),
        threads=threads,
        decode=decode,
        postprocess=postprocess,
        timeline=timeline,
        check=shared.group.check if shared else lambda: None,
    )
    return batches if shared is None else _of_all_processes(batches, shared, len(images), timeline)


def _of_all_processes(
    batches: Generator[ClassifiedBatch, None, None],
    shared: SharedExecutable,
    num_images: int,
    timeline: Timeline | None,
) -> Generator[ClassifiedBatch, None, None]:
    """Yields this process's part of each batch, which process 0 gets; there, the whole batches."""
    with contextlib.closing(batches):
        for batch in batches:
            skipped = [(index, error.name, error.reason) for index, error in batch.skipped]
            parts = shared.group.gather((batch.predictions, skipped) if shared.answers else ((), ()))
            if parts:
                start = batch.indices.start
                indices = range(start, min(start + shared.batch_size, num_images))
                batch = dataclasses.replace(_joined(indices, parts), of_softmax=batch.of_softmax)
                if timeline is not None:
                    timeline.add_whole(len(batch.predictions))
            yield batch
        shared.group.finish()


def _joined(indices: range, parts: list[Any]) -> ClassifiedBatch:
    predictions = [
        Prediction(*values[:-2], *map(tuple, values[-2:])) for predictions, _ in parts for values in predictions
    ]
    skipped = [Skipped(index, UnreadableImage(*error)) for _, skipped in parts for index, *error in skipped]
    return ClassifiedBatch(indices, predictions, skipped, [len(predictions) for predictions, _ in parts])


@dataclasses.dataclass(slots=True)
class _Batch:
    """Indices into the source; the host thread that decodes them fills in the rest."""

    indices: range
    names: list[str] = dataclasses.field(default_factory=list)
    labels: list[int | None] = dataclasses.field(default_factory=list)
    skipped: list[Skipped] = dataclasses.field(default_factory=list)


def _batches(num_images: int, executable: Executable | Cards) -> Iterator[_Batch]:
    """Batches of indices; the first leaves room for a deferred probe.

    Where that would take one more launch, the probe is run before: no batch's times hold it.
    """
    start = 0
    if isinstance(executable, Executable) and (probe := executable.pending_probe) is not None:
        if probe.adds_launch(num_images):
            probe.run_alone(executable)
        else:
            start = min(probe.room, num_images)
            yield _Batch(range(start))
    rows = executable.rows
    for first in range(start, num_images, executable.batch_size):
        yield _Batch(range(first, min(first + executable.batch_size, num_images))[rows.start : rows.stop])


def name_of(names: tuple[str, ...], index: int) -> str:
    """The name of a class; its number where it has none."""
    return names[index] if index < len(names) else str(index)


def logit_names(executable: Executable | Cards | Manifest, images: ModelImages) -> tuple[str, ...]:
    """The names of the logits: those of the images' classes where these number the logits, else the model's labels."""
    labels = tuple(executable.metadata.get("labels", ()))
    return (images.class_names or labels) if numbered_alike(executable, images) else labels


def numbered_alike(executable: Executable | Cards | Manifest, images: ModelImages) -> bool:
    """Whether the images' labels number the executable's logits."""
    return images.class_names is not None and len(images.class_names) == executable.output_spec.shape[1]


@dataclasses.dataclass(slots=True)
class Tally:
    """Sums over the finished part of a run.

    Attributes:
      num_images: images classified.
      by_process: of these, by each of several processes; empty for one.
      skipped: name and error of each unreadable image.
      top5_hits: images whose label was among the five most probable classes.
      confusion: (classes, classes), images by label and prediction; None where labels don't number the logits.
      of_softmax: whether all outputs look like probabilities rather than logits.
      num_undefined: images with a logit of NaN.
    """

    num_images: int = 0
    by_process: list[int] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)
    top5_hits: int = 0
    confusion: np.ndarray | None = None
    of_softmax: bool = True
    num_undefined: int = 0

    @classmethod
    def of(cls, executable: Executable | Cards | Manifest, images: ModelImages) -> "Tally":
        """An empty tally for these images."""
        num_classes = executable.output_spec.shape[1]
        counts = numbered_alike(executable, images)
        return cls(confusion=np.zeros((num_classes, num_classes), np.int64) if counts else None)

    def add(self, batch: ClassifiedBatch) -> None:
        """Adds a finished batch."""
        self.num_images += len(batch.predictions)
        self.of_softmax &= batch.of_softmax
        self.by_process = [
            before + count for before, count in itertools.zip_longest(self.by_process, batch.by_process, fillvalue=0)
        ]
        self.skipped += [f"{error.name}: {error.reason}" for _, error in batch.skipped]
        for prediction in batch.predictions:
            label, top = prediction.label_index, prediction.top_indices
            self.top5_hits += label in top
            self.num_undefined += math.isnan(prediction.probability)
            if self.confusion is not None:
                self.confusion[label, top[0]] += 1

    def notes(self) -> list[str]:
        """Notes on outputs that no classifier should have."""
        found = []
        if self.of_softmax and self.num_images:
            found.append(
                "the model's outputs look like probabilities, non-negative with sum 1: a classifier returns logits, of "
                "which the run takes the softmax"
            )
        if self.num_undefined:
            images = counted(self.num_undefined, "image")
            found.append(f"logits of NaN for {images}: what is predicted there means nothing")
        return found
