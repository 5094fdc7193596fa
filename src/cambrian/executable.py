"""What the library's `compile` and `load` return: the engine's executables, with what takes images."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from cambrian import engine
from cambrian.commands.images import ImageSource, open_source
from cambrian.commands.images.source import EvenSample
from cambrian.commands.run.classify import Prediction, classify, images_of
from cambrian.sharding import UsageError, without_context_mesh

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = str | os.PathLike | bytes | Image | np.ndarray
    Images = Picture | Sequence[Picture]


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
        images: "Images",
        *,
        threads: int = 2,
        split: str = "test",
        num_images: int = 0,
        skip_bad_images: bool = False,
    ) -> list[Prediction]:
        """Classifies images, in their order: those of a folder in the order of their sorted names.

        Args:
          images: a folder (FOLDER/CLASS/image, FOLDER/SPLIT/CLASS/image, or images), `cifar10`, `cifar10_sample` (1,000
            packaged test images) or `synthetic`; or a picture, or a sequence of pictures: each the path or the bytes of
            a JPEG or PNG file, a picture of Pillow's, or pixels (H, W, 3) or (H, W) uint8, of any size. Those without a
            path are named by their number.
          threads: number of host threads that decode, launch and rank.
          split: which split, where the data has splits.
          num_images: 0 for all; a smaller number than there are takes that many at even distances.
          skip_bad_images: leave out images that can't be read instead of raising.

        Raises:
          UsageError: if the executable isn't an image classifier, or there are no such images.
          UnreadableImage: for an image that can't be read, unless `skip_bad_images`.
        """
        return _classify(self, images, threads, split, num_images, skip_bad_images)

    def preprocess(self, images: "Images") -> np.ndarray:
        """Reads and preprocesses images as `classify` does.

        Returns:
          (N, height, width, 3) uint8, which the executable and its `stream` take.

        Raises:
          UsageError, UnreadableImage: as `classify`.
        """
        return _preprocess(self, images)

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
        with without_context_mesh(but=self.mesh):
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
        images: "Images",
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

    def preprocess(self, images: "Images") -> np.ndarray:
        """Reads and preprocesses images as `Executable.preprocess` does."""
        return _preprocess(self, images)

    def save(self, path: str | os.PathLike, **_: Any) -> NoReturn:
        """Raises UsageError: cards hold an artefact already."""
        raise UsageError(f"cards were loaded from an artefact, which can be copied: can't save them to {path}")


def _classify(
    executable: Executable | Cards, images: "Images", threads: int, split: str, num_images: int, skip_bad_images: bool
) -> list[Prediction]:
    readable, _ = images_of(executable, _source(images, split, num_images))
    batches = classify(executable, readable, threads=threads, skip_bad_images=skip_bad_images)
    return [prediction for batch in batches for prediction in batch.predictions]


def _preprocess(executable: Executable | Cards, images: "Images") -> np.ndarray:
    readable, _ = images_of(executable, _source(images))
    return np.array([image.pixels for image in readable], np.uint8).reshape(-1, *executable.input_spec.shape[1:])


def _source(images: "Images", split: str = "test", num_images: int = 0) -> ImageSource:
    if isinstance(images, (str, os.PathLike)) and not os.path.isfile(images):
        return open_source(os.fspath(images), split=split, num_images=num_images)[0]
    from PIL import Image as PillowImage  # which a start without pictures can do without

    from cambrian.commands.images.given import GivenImages

    is_picture = isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, PillowImage.Image))
    if isinstance(images, np.ndarray):
        is_picture = images.ndim in (0, 2, 3)
    if not is_picture and not isinstance(images, (Sequence, np.ndarray)):
        raise UsageError(f"expected a folder, a picture or a sequence of pictures, got {type(images).__name__}")
    pictures: Any = [images] if is_picture else images
    values = [Path(picture) if isinstance(picture, (str, os.PathLike)) else picture for picture in pictures]
    names = [str(value) if isinstance(value, Path) else str(number) for number, value in enumerate(values)]
    source = GivenImages(names, values)
    return EvenSample(source, num_images) if num_images else source
