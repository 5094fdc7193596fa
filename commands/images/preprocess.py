"""From an upright RGB picture to a model's input pixels, as timm, torchvision or transformers compute them."""

import math

import numpy as np
from PIL import Image as PillowImage

from cambrian.sharding import Preprocessing

# Largest intermediate picture, in pixels, where the picture itself is smaller: 64 MiB.
_MOST_PIXELS = 2**24
_Span = tuple[int, int, int]  # see `Preprocessing.crop`


def preprocess(image: PillowImage.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Resizes, crops and pads a picture of mode RGB; the program scales and normalises.

    Agrees with the library that `preprocessing` comes from to 2 of 255. A long thin picture takes at most 64 MiB.

    Returns:
      (height, width, 3) uint8, channels in the order of `preprocessing`.
    """
    spans = preprocessing.crop(preprocessing.resized_size(image.height, image.width))
    pixels = np.full((*preprocessing.size, 3), preprocessing.fill, np.uint8)
    (_, top, num_rows), (_, left, num_columns) = spans
    pixels[top : top + num_rows, left : left + num_columns] = _resized_part(image, preprocessing, *spans)
    return pixels if preprocessing.channels == "RGB" else np.ascontiguousarray(pixels[..., ::-1])


def _resized_part(image: PillowImage.Image, preprocessing: Preprocessing, rows: _Span, columns: _Span) -> np.ndarray:
    height, width = preprocessing.resized_size(image.height, image.width)
    (top, _, num_rows), (left, _, num_columns) = rows, columns
    part = left, top, left + num_columns, top + num_rows
    if (width, height) == image.size:
        return np.asarray(image.crop(part))
    pillow = preprocessing.resampler == "pillow"
    if preprocessing.interpolation == "nearest":
        sources = _nearest(image.height, height, rows, pillow), _nearest(image.width, width, columns, pillow)
        return np.asarray(image)[np.ix_(*sources)]
    resample = PillowImage.Resampling[preprocessing.interpolation.upper()]
    if pillow and preprocessing.interpolation == "bilinear" and max(image.size) <= 4 * min(image.size):
        # Compute the part alone. Other filters overshoot and are clipped between the axes, and Pillow's order of axes
        # differs between the part and the whole; "box" jumps where its edges move a bit.
        x, y = image.width / width, image.height / height
        box = part[0] * x, part[1] * y, part[2] * x, part[3] * y
        return np.asarray(image.resize((num_columns, num_rows), resample, box))
    if pillow and width * height <= max(_MOST_PIXELS, image.width * image.height):
        return np.asarray(image.resize((width, height), resample).crop(part))
    # torch resizes columns first; so does Pillow where it enlarges.
    return np.asarray(_resized_axis(_resized_axis(image, 0, width, columns, resample), 1, height, rows, resample))


def _resized_axis(
    image: PillowImage.Image, axis: int, length: int, span: _Span, resample: PillowImage.Resampling
) -> PillowImage.Image:
    """The part `span` of the picture resized to `length` along `axis`, 0 for x and 1 for y."""

    def along(start: float, stop: float) -> tuple[float, float, float, float]:
        return (start, 0, stop, image.height) if axis == 0 else (0, start, image.width, stop)

    def sized(length: int) -> tuple[int, int]:
        return (length, image.height) if axis == 0 else (image.width, length)

    start, _, count = span
    if math.prod(sized(length)) <= max(_MOST_PIXELS, image.width * image.height):
        image = image.resize(sized(length), resample)
        return image.crop(along(start, start + count))
    # No filter reaches further than 3 pixels of the smaller scale. Pillow's boxes are of float32: a small one is exact.
    scale = image.size[axis] / length
    margin = math.ceil(3 * max(scale, 1)) + 1
    first = max(math.floor(start * scale) - margin, 0)
    last = min(math.ceil((start + count) * scale) + margin, image.size[axis])
    image = image.crop(along(first, last))
    return image.resize(sized(count), resample, along(start * scale - first, (start + count) * scale - first))


def _nearest(side: int, resized: int, span: _Span, pillow: bool) -> np.ndarray:
    """Indices of the source pixels of `span`; ties fall as in the library's arithmetic."""
    start, _, count = span
    if pillow:
        centres = np.full(start + count, side / resized)
        centres[0] *= 0.5
        centres = np.add.accumulate(centres)[start:]
    else:
        places = np.arange(start, start + count, dtype=np.float32)
        centres = (places + np.float32(0.5)) * np.float32(side / resized)
    return np.minimum(centres.astype(np.int64), side - 1)
