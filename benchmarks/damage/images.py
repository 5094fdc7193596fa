"""Damaged images: every kind first as it is, which must be right, then in one place.

JPEG has no checksum, so *right* is an image of the right shape: its pixels may differ.
"""

import dataclasses
import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.damage.part import mutate

_TOO_LARGE = "huge.png"  # as a whole picture of 900 million pixels


@dataclasses.dataclass(frozen=True)
class Images:
    hung_after_s: float = 60.0

    def prepare(self, folder: Path) -> None:
        from PIL import Image

        pixels = np.random.default_rng(0).integers(256, size=(48, 64, 3), dtype=np.uint8)
        picture, exif = Image.fromarray(pixels), Image.Exif()
        exif[0x0112] = 6  # turned by 90°
        picture.save(folder / "plain.jpg")
        picture.save(folder / "progressive.jpg", progressive=True)
        picture.save(folder / "turned.jpg", exif=exif)
        picture.convert("CMYK").save(folder / "cmyk.jpg")
        picture.save(folder / "plain.png")
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
        picture.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png", transparency=b"\x80")
        picture.save(folder / "animated.png", save_all=True, append_images=[picture.rotate(90)])
        picture.crop((0, 0, 1, 1)).save(folder / "pixel.png")
        picture.resize((30_000, 2)).save(folder / "wide.png")
        picture.resize((2, 30_000)).save(folder / "tall.jpg")
        Image.new("1", (30_000, 30_000)).save(folder / _TOO_LARGE)

    def case(self, folder: Path, number: int, chance: random.Random, tell: Callable[[str], None]) -> str:
        from cambrian.commands.images import UnreadableImage
        from cambrian.commands.images.decode import decode_image
        from cambrian.sharding import Preprocessing

        names = sorted(path.name for path in folder.iterdir())
        name, is_whole = names[number % len(names)], number < len(names)
        what, data = "whole", (folder / name).read_bytes()
        if not is_whole:
            what, data = mutate(data, chance, num_head_bytes=700)
        tell(f"{what} of {name}")
        try:
            pixels = decode_image(io.BytesIO(data), name, Preprocessing((32, 32), (32, 32)))
        except UnreadableImage:
            return "lost" if is_whole and name != _TOO_LARGE else "refused"
        return "right" if (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8) else "lost"
