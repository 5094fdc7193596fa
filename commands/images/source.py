"""Image sources: random access to images that are read on demand."""

import dataclasses
import errno
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from cambrian.commands.console import counted
from cambrian.commands.images.labels import number_classes
from cambrian.sharding import Preprocessing, UsageError

# What the system says of a file that can't be read. Its other errors, such as a time-out or too many open files, say
# nothing of the file. EINVAL comes of a seek to where a damaged file points.
ERRORS_OF_A_FILE = frozenset(
    {
        errno.EACCES,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
    }
)


class Image(NamedTuple):
    """A preprocessed image.

    Attributes:
      name: identifies it in its source, such as `cat/0012.jpg`.
      pixels: (height, width, 3) uint8, in the channel order of the preprocessing.
      label: index into the class names; None without labels.
    """

    name: str
    pixels: np.ndarray
    label: int | None


class ImageSource(Protocol):
    """Images by index. `read` is thread-safe.

    Attributes:
      description: as the report names it.
      class_names: the names that labels index into, in the source's own order; None without labels.
    """

    @property
    def description(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...] | None: ...

    def __len__(self) -> int: ...

    def read(self, index: int, preprocessing: Preprocessing) -> Image:
        """Reads and decodes one image, 0 ≤ index < len.

        Raises:
          UnreadableImage: if it can't be decoded.
          OSError: if reading failed for a reason that may pass.
        """
        ...


class UnreadableImage(UsageError):
    """An image that can't be read or decoded, with its `name` (a path where it is a file) and the `reason`."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"expected a readable JPEG or PNG image, got {name}: {reason}")
        self.name = name
        self.reason = reason


@dataclasses.dataclass(frozen=True, slots=True)
class EvenSample:
    """`count` images of a source at even distances, so that a source sorted by class keeps every class."""

    source: ImageSource
    count: int

    def __post_init__(self):
        if not 1 <= self.count <= len(self.source):
            raise UsageError(
                f"num_images must be at most the {counted(len(self.source), 'image')} of {self.source.description}, "
                f"got {self.count}"
            )

    @property
    def description(self) -> str:
        return f"{self.count} of {counted(len(self.source), 'image')} of {self.source.description}"

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.source.class_names

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, preprocessing: Preprocessing) -> Image:
        return self.source.read(index * len(self.source) // self.count, preprocessing)


@dataclasses.dataclass(frozen=True, slots=True)
class ModelImages:
    """A source's images as a model reads and numbers them.

    Attributes:
      class_names: the names that labels index into; None without labels.
      label_of_class: number of a class in the source → label.
    """

    source: ImageSource
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    label_of_class: tuple[int, ...]

    @property
    def description(self) -> str:
        return self.source.description

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Image:
        """Reads one image.

        Raises:
          IndexError: unless 0 ≤ index < len.
          UnreadableImage, OSError: as `ImageSource.read`.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        image = self.source.read(index, self.preprocessing)
        return image if image.label is None else image._replace(label=self.label_of_class[image.label])

    def __iter__(self) -> Iterator[Image]:
        return (self[index] for index in range(len(self)))


def for_model(
    source: ImageSource, preprocessing: Preprocessing, labels: tuple[str, ...], num_logits: int
) -> tuple[ModelImages, tuple[str, ...]]:
    """The images of a source as a model reads and numbers them, and human-readable notes.

    Args:
      labels: the model's, in the order of the logits; empty if unknown.

    Raises:
      UsageError: if the model has labels and a class of the source isn't exactly one of them.
    """
    if source.class_names is None:
        return ModelImages(source, preprocessing, None, ()), ()
    numbers, names, notes = number_classes(source.class_names, labels, num_logits)
    return ModelImages(source, preprocessing, names, numbers), notes
