"""Images that the caller names or holds: files, their bytes, or decoded pictures."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from cambrian.commands.images.decode import decode_image, preprocess_picture
from cambrian.commands.images.source import Image, UnreadableImage
from cambrian.sharding import Preprocessing


@dataclasses.dataclass(frozen=True, slots=True)
class GivenImages:
    """Images by name.

    Attributes:
      names: of the images.
      values: of each image the bytes of a JPEG or PNG file, a mapping that holds these as `bytes`, as in data sets of
        Hugging Face, a `Path` of such a file, a picture of Pillow's, or pixels (H, W, 3) or (H, W) uint8.
    """

    names: Sequence[str]
    values: Sequence[Any] = dataclasses.field(repr=False)

    @property
    def description(self) -> str:
        return "images in memory"

    @property
    def class_names(self) -> None:
        return None

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int, preprocessing: Preprocessing) -> Image:
        name, value = self.names[index], self.values[index]
        if isinstance(value, dict):
            value = value.get("bytes")
        if isinstance(value, Path):
            return Image(name, decode_image(str(value), name, preprocessing), None)
        if isinstance(value, np.ndarray):
            value = _of_pixels(value, name)
        if isinstance(value, PillowImage.Image):
            return Image(name, preprocess_picture(value, name, preprocessing), None)
        if not isinstance(value, bytes | bytearray | memoryview):
            raise UnreadableImage(name, f"{'no value' if value is None else type(value).__name__} instead of bytes")
        return Image(name, decode_image(io.BytesIO(value), name, preprocessing), None)


def _of_pixels(pixels: np.ndarray, name: str) -> PillowImage.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        raise UnreadableImage(name, f"pixels must be (H, W, 3) or (H, W) uint8, got {pixels.shape} {pixels.dtype}")
    return PillowImage.fromarray(pixels)
