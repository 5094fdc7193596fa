"""What the library's `compile` and `load` return: the engine's executables, with what takes images."""

import dataclasses
import os
from pathlib import Path
from typing import Any, NoReturn

from cambrian import engine
from cambrian.commands.images import open_source
from cambrian.commands.run.classify import Prediction, classify, images_of
from cambrian.sharding import UsageError


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Executable(engine.Executable):
    """A program compiled ahead of time for one mesh and batch size, with its parameters on the devices.

    `executable(inputs)` gives the outputs (N, …) for inputs (N, …) of any N, arrays or pytrees, and
    `executable.stream(batches, threads)` those of each batch, in order. `notes` are human-readable deviations from the
    request. `plan` says how each layer is cut and computed, `analysis` what a device holds and computes, and `parity`,
    after a load, how far the outputs are from the unsharded float32 model.
    """

    @classmethod
    def of(cls, executable: engine.Executable) -> "Executable":
        """The same executable with the methods of the library."""
        return cls(**{field.name: getattr(executable, field.name) for field in dataclasses.fields(executable)})

    def classify(
        self,
        images: str | os.PathLike,
        *,
        threads: int = 2,
        split: str = "test",
        num_images: int = 0,
        skip_bad_images: bool = False,
    ) -> list[Prediction]:
        """Classifies images, in the order of their sorted names.

        Args:
          images: a folder (FOLDER/CLASS/image, FOLDER/SPLIT/CLASS/image, or images), `cifar10`, `cifar10_sample` (1,000
            packaged test images) or `synthetic`.
          threads: number of host threads that decode, launch and rank.
          split: which split, where the data has splits.
          num_images: 0 for all; a smaller number than there are takes that many at even distances.
          skip_bad_images: leave out images that can't be read instead of raising.

        Raises:
          UsageError: if the executable isn't an image classifier, or there are no such images.
          UnreadableImage: for an image that can't be read, unless `skip_bad_images`.
        """
        return _classify(self, images, threads, split, num_images, skip_bad_images)

    def save(self, path: str | os.PathLike, *, signing_key: str | os.PathLike | None = None) -> None:
        """Saves the executable as an artefact: a new directory, which appears complete or not at all.

        Computes the unsharded float32 model once, for the probe that each load compares with.

        Args:
          signing_key: the user's key file; None for the default one, which is made if there is none.

        Raises:
          UsageError: if the executable was itself loaded from an artefact, or the key can't be used.
          ArtifactExists: if `path` exists.
          OSError: if it can't be written.
        """
        engine.save(self, Path(path), None if signing_key is None else Path(signing_key))


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Cards(engine.Cards):
    """An executable in several processes of this host, each on devices of its own: cores of its own on CPU.

    Used as an `Executable` is, except that it can't be saved. When a process dies, its batches go to the others; when
    the last one does, `CardsEnded` says how each ended. Ends the processes at the end of a `with` block, in `close`, or
    at the end of the interpreter.
    """

    def classify(
        self,
        images: str | os.PathLike,
        *,
        threads: int | None = None,
        split: str = "test",
        num_images: int = 0,
        skip_bad_images: bool = False,
    ) -> list[Prediction]:
        """Classifies images as `Executable.classify` does.

        Args:
          threads: number of host threads that decode and rank; thread i feeds card i mod N. None for two for each card.

        Raises:
          CardsEnded: if no card is left.
          UsageError, UnreadableImage: as `Executable.classify`.
        """
        threads = 2 * len(self.cards) if threads is None else threads
        return _classify(self, images, threads, split, num_images, skip_bad_images)

    def save(self, path: str | os.PathLike, **_: Any) -> NoReturn:
        """Raises UsageError: cards hold an artefact already."""
        raise UsageError(f"cards were loaded from an artefact, which can be copied: can't save them to {path}")


def _classify(
    executable: Executable | Cards,
    images: str | os.PathLike,
    threads: int,
    split: str,
    num_images: int,
    skip_bad_images: bool,
) -> list[Prediction]:
    source, _ = open_source(os.fspath(images), split=split, num_images=num_images)
    readable, _ = images_of(executable, source)
    batches = classify(executable, readable, threads=threads, skip_bad_images=skip_bad_images)
    return [prediction for batch in batches for prediction in batch.predictions]
