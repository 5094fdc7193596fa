"""Preprocessing: how an image becomes the input of a program."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cambrian.sharding.errors import UsageError

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of Pillow's numbers
RESIZES = ("shortest_edge", "cover", "contain", "exact", "none")
RESAMPLERS = ("pillow", "torch")
OFFSET_ROUNDINGS = ("half_even", "floor")
CHANNELS = ("RGB", "BGR")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resize, crop or pad around the centre, scale to 0…1, normalise.

    Attributes:
      size: height and width of the input in pixels.
      resize_to: target height and width of `resize` in pixels; None for `none`.
      mean: mean of each channel, in the order of `channels`, of pixels scaled to 0…1.
      std: standard deviation of each channel, in the order of `channels`, of pixels scaled to 0…1.
      resize: `shortest_edge` resizes the shorter side to resize_to[0] and rounds the longer one down. `cover` and
        `contain` make the image just cover `resize_to` or just fit into it, and round sides half to even. `exact`
        resizes to `resize_to`, ignoring the aspect ratio. `none` doesn't resize.
      interpolation: one of INTERPOLATIONS, antialiased.
      resampler: implementation to reproduce, `pillow` (timm, torchvision) or `torch` (transformers).
      offset_rounding: rounding of a crop offset of half a pixel, `half_even` or `floor`.
      fill: (R, G, B) of the padding around an image smaller than `size`; an odd pixel goes right or below.
      channels: channel order of the input, `RGB` or `BGR`.

    Raises:
      UsageError: if a value has the wrong type or is out of range.
    """

    size: tuple[int, int]
    resize_to: tuple[int, int] | None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: str = "shortest_edge"
    interpolation: str = "bilinear"
    resampler: str = "pillow"
    offset_rounding: str = "half_even"
    fill: tuple[int, ...] = (0, 0, 0)
    channels: str = "RGB"

    def __post_init__(self):
        for name, choices in (
            ("resize", RESIZES),
            ("interpolation", INTERPOLATIONS),
            ("resampler", RESAMPLERS),
            ("offset_rounding", OFFSET_ROUNDINGS),
            ("channels", CHANNELS),
        ):
            if (value := getattr(self, name)) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if not is_size(self.size):
            raise UsageError(f"size must be height and width of at least 1 pixel, got {self.size!r}")
        if self.resize_to is not None if self.resize == "none" else not is_size(self.resize_to):
            raise UsageError(f"resize_to must be height and width, or None without resizing, got {self.resize_to!r}")
        if self.resize == "shortest_edge" and self.resize_to and self.resize_to[0] != self.resize_to[1]:
            raise UsageError(f"resize_to must be square for shortest_edge, got {self.resize_to!r}")
        if not are_three_numbers(self.mean) or not all(0 <= value <= 1 for value in self.mean):
            raise UsageError(f"mean must be three numbers from 0 to 1, as pixels are scaled to, got {self.mean!r}")
        if not are_three_numbers(self.std) or min(self.std) <= 0:
            raise UsageError(f"std must be three finite numbers above 0, got {self.std!r}")
        if not isinstance(self.fill, tuple) or len(self.fill) != 3 or not all(_is_int(v, 0, 255) for v in self.fill):
            raise UsageError(f"fill must be three integers from 0 to 255, got {self.fill!r}")

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the height and width, before the crop, of an image of `height` and `width`."""
        if self.resize_to is None:
            return height, width
        if self.resize == "exact":
            return self.resize_to
        if self.resize == "shortest_edge":
            edge = self.resize_to[0]
            longer = int(edge * max(height, width) / min(height, width))
            return (edge, longer) if height <= width else (longer, edge)
        ratios = height / self.resize_to[0], width / self.resize_to[1]
        ratio = min(ratios) if self.resize == "cover" else max(ratios)
        return max(round(height / ratio), 1), max(round(width / ratio), 1)

    def crop(self, resized: tuple[int, int]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Returns, for rows and for columns of a resized image, (first one kept, its index in the input, number)."""
        rows, columns = (self._span(*sides) for sides in zip(resized, self.size, strict=True))
        return rows, columns

    def _span(self, resized: int, size: int) -> tuple[int, int, int]:
        if resized <= size:
            return 0, (size - resized) // 2, resized
        spare = resized - size
        return round(spare / 2) if self.offset_rounding == "half_even" else spare // 2, 0, size

    def with_size(self, image_size: int) -> "Preprocessing":
        """Returns the same preprocessing for squares of `image_size` pixels; the crop stays the same fraction."""
        if self.size == (image_size, image_size):
            return self
        resize_to = None
        if self.resize_to is not None:
            height, width = (
                max(round(target * image_size / side), 1)
                for target, side in zip(self.resize_to, self.size, strict=True)
            )
            # The larger edge, so that the resized image covers the square.
            edge = max(height, width)
            resize_to = (edge, edge) if self.resize == "shortest_edge" else (height, width)
        return dataclasses.replace(self, size=(image_size, image_size), resize_to=resize_to)

    def to_json(self) -> dict[str, Any]:
        """Returns all fields as JSON-compatible values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, value: Any, source: Path | str) -> "Preprocessing":
        """The inverse of `to_json`.

        Raises:
          UsageError: if a field is missing, unknown, of the wrong type or out of range (names `source`).
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(value, Mapping) or set(value) != names:
            got = ", ".join(sorted(map(str, value))) if isinstance(value, Mapping) else repr(value)
            raise UsageError(f"{source}: expected preprocessing with {', '.join(sorted(names))}, got {got:.300}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
        try:
            return cls(**values)
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from None


def is_size(value: Any) -> bool:
    """Whether `value` is a tuple of two integers of at least 1."""
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_int, value))


def is_number(value: Any) -> bool:
    """Whether `value` is an int or float that float32 can represent."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 3e38


def are_three_numbers(values: Any) -> bool:
    """Whether `values` is a tuple of three finite numbers."""
    return isinstance(values, tuple) and len(values) == 3 and all(map(is_number, values))


def _is_int(value: Any, least: int = 1, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
