"""From an image file to the square of pixels that a model reads."""

from typing import BinaryIO

import numpy as np
from PIL import Image as PillowImage, ImageOps, UnidentifiedImageError

from cambrian.commands.images.source import Preprocessing, UnreadableImage


def decode_image(file: str | BinaryIO, name: str, preprocessing: Preprocessing) -> np.ndarray:
    """Decodes a JPEG or PNG file of any mode, upright as its EXIF data says, to (image_size, image_size, 3) uint8 RGB.

    Raises:
      UnreadableImage: if it isn't a JPEG or PNG file, or is damaged or truncated; names it by `name`.
    """
    try:
        with PillowImage.open(file, formats=("JPEG", "PNG")) as image:
            upright = _as_rgb(ImageOps.exif_transpose(image))
            return np.asarray(resize_and_crop(upright, preprocessing))
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(name, "not a JPEG or PNG file") from None
    except Exception as error:  # damaged files raise OSError, SyntaxError, ValueError, struct.error and others
        raise UnreadableImage(name, " ".join(str(error).split()) or type(error).__name__) from error


def resize_and_crop(image: PillowImage.Image, preprocessing: Preprocessing) -> PillowImage.Image:
    """The centre square of the image whose shorter side was resized to round(image_size / crop_fraction).

    With antialiasing, by Pillow's filter of the name `interpolation`; sizes and offsets are rounded as torchvision's
    Resize and CenterCrop do. Only the square is computed, so a long thin image costs no more than another. An image of
    that size already is returned as it is.
    """
    width, height = image.size
    image_size = preprocessing.image_size
    shorter = round(image_size / preprocessing.crop_fraction)
    if width < height:
        resized_width, resized_height = shorter, int(shorter * height / width)
    else:
        resized_width, resized_height = int(shorter * width / height), shorter
    left, top = round((resized_width - image_size) / 2), round((resized_height - image_size) / 2)
    if (width, height) == (resized_width, resized_height) == (image_size, image_size):
        return image
    scale_x, scale_y = width / resized_width, height / resized_height
    box = (left * scale_x, top * scale_y, (left + image_size) * scale_x, (top + image_size) * scale_y)
    return image.resize((image_size, image_size), PillowImage.Resampling[preprocessing.interpolation.upper()], box=box)


def _as_rgb(image: PillowImage.Image) -> PillowImage.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    elif image.mode == "P":  # a palette may carry transparency, which Pillow converts by way of RGBA only
        image = image.convert("RGBA")
    return image.convert("RGB")
