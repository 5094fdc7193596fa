"""What an image source is: random access to decoded images, each read at the moment it is asked for."""

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np

from sharding import UsageError


class Image(NamedTuple):
    """One image, resized and cropped to the model's size.

    Attributes:
      name: identifies it in its source, such as `cat/0012.jpg`.
      pixels: (image_size, image_size, 3) uint8, RGB.
      label: index into the source's `class_names`; None without labels.
    """

    name: str
    pixels: np.ndarray
    label: int | None


class ImageSource(Protocol):
    """Images by index. `__getitem__` may be called by many threads at once and keeps nothing, so memory is bounded.

    Attributes:
      description: what is read, for the report.
      class_names: what labels index into; None without labels.
      has_labels: whether every image has a label.
    """

    @property
    def description(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...] | None: ...

    @property
    def has_labels(self) -> bool: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image:
        """Reads and decodes one image, 0 ≤ index < len.

        Raises:
          UnreadableImage: if it can't be decoded.
        """
        ...


class UnreadableImage(UsageError):
    """An image that can't be read or decoded, with its `name` (a path where it is a file) and the `reason`."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"a readable JPEG or PNG image is needed, got {name}: {reason}")
        self.name = name
        self.reason = reason


@dataclasses.dataclass(frozen=True, slots=True)
class EvenSample:
    """`count` images of a source at even distances, in its order: of a source sorted by class, some of every class."""

    source: ImageSource
    count: int

    def __post_init__(self):
        if not 1 <= self.count <= len(self.source):
            raise UsageError(
                f"num_images must be at most the {len(self.source)} images of {self.source.description}, "
                f"got {self.count}"
            )

    @property
    def description(self) -> str:
        return f"{self.count} of {len(self.source)} images of {self.source.description}"

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.source.class_names

    @property
    def has_labels(self) -> bool:
        return self.source.has_labels

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Image:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.source[index * len(self.source) // self.count]
