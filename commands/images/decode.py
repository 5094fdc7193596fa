"""From an image file to a model's input pixels."""

import contextlib
import threading
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image as PillowImage, UnidentifiedImageError

from cambrian.commands.images.preprocess import preprocess
from cambrian.commands.images.source import ERRORS_OF_A_FILE, UnreadableImage
from cambrian.sharding import Preprocessing

_TURNS = {
    2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
    3: PillowImage.Transpose.ROTATE_180,
    4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_270,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_90,
}

_FIRST_USE = threading.Lock()  # of a caller's picture, which reads its file then, and may be several threads'


def decode_image(file: str | BinaryIO, name: str, preprocessing: Preprocessing) -> np.ndarray:
    """Decodes a JPEG or PNG file of any mode, turns it upright by its EXIF data, and preprocesses it.

    Returns:
      (height, width, 3) uint8, as `preprocess`.

    Raises:
      UnreadableImage: naming `name`, if it isn't a JPEG or PNG file, or is damaged or truncated.
      OSError: naming `name`, if the system fails to read it for a reason that may pass.
    """
    with _blaming(name), PillowImage.open(file, formats=("JPEG", "PNG")) as image:
        return preprocess(as_rgb(_upright(image)), preprocessing)


def preprocess_picture(picture: PillowImage.Image, name: str, preprocessing: Preprocessing) -> np.ndarray:
    """Turns a picture of Pillow's upright and preprocesses it; returns and raises as `decode_image`."""
    with _blaming(name):
        with _FIRST_USE:
            upright = _upright(picture)
        return preprocess(as_rgb(upright), preprocessing)


@contextlib.contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Turns the errors of a picture, which Pillow raises, into those of `decode_image`."""
    try:
        yield
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(name, "not a JPEG or PNG file") from None
    except Exception as error:  # damaged files raise OSError, SyntaxError, ValueError, struct.error and others
        # Pillow's own errors have no number.
        if isinstance(error, OSError) and error.errno is not None and error.errno not in ERRORS_OF_A_FILE:
            raise OSError(error.errno, error.strerror, name) from error
        raise UnreadableImage(name, " ".join(str(error).split()) or type(error).__name__) from error


def _upright(image: PillowImage.Image) -> PillowImage.Image:
    """Turns a picture as EXIF says; `ImageOps.exif_transpose` would write its EXIF anew, and fails if that is odd."""
    image.load()  # else reading the EXIF data of a PNG would, and its errors are of the pixels
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except MemoryError:
        raise
    except Exception:  # malformed, which says nothing of the pixels
        return image
    return image if turn is None else image.transpose(turn)


def as_rgb(image: PillowImage.Image) -> PillowImage.Image:
    """Converts a picture of any mode to RGB."""
    if image.mode.startswith("I;") or (image.mode == "I" and image.getextrema()[1] > 255):
        # 16-bit grey, which Pillow would clip at 255; integers of 32 bits may hold 8 instead.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    elif image.mode == "P":  # a palette may carry transparency, which Pillow converts by way of RGBA only
        image = image.convert("RGBA")
    return image.convert("RGB")
