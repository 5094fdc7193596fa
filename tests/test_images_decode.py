"""Decoding of pictures: modes, sizes and orientations."""

import struct

import numpy as np
import pytest
from PIL import Image as PillowImage, ImageOps

from cambrian.commands.images.decode import as_rgb
from image_cases import open_images, write


def test_an_image_of_the_right_size_is_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    PillowImage.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_images(tmp_path)[0][0].pixels, pixels)


@pytest.mark.parametrize(
    "mode, color, expected",
    [
        ("L", 77, (77, 77, 77)),
        ("RGBA", (1, 2, 3, 128), (1, 2, 3)),
        ("I;16", 0x4D00, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_any_mode_becomes_rgb(tmp_path, mode, color, expected):
    write(tmp_path / "a.png", color, mode=mode)
    np.testing.assert_array_equal(open_images(tmp_path)[0][0].pixels, np.full((8, 8, 3), expected, np.uint8))


@pytest.mark.parametrize(("value", "expected"), [(77, 77), (255, 255), (0x4D00, 77), (2**20, 255)])
def test_integers_of_32_bits_are_grey_of_8_or_16(value, expected):
    pixels = np.array([[0, value]], np.int32)
    np.testing.assert_array_equal(as_rgb(PillowImage.fromarray(pixels)), [[(0, 0, 0), 3 * (expected,)]])


def test_a_palette_with_transparency_and_a_cmyk_jpeg_become_rgb(tmp_path):
    palette = PillowImage.new("RGB", (8, 8), (9, 8, 7)).convert("P", palette=PillowImage.Palette.ADAPTIVE)
    palette.save(tmp_path / "a.png", transparency=b"\x80")
    write(tmp_path / "b.jpg", (0, 0, 0, 255), mode="CMYK")
    source, _ = open_images(tmp_path)
    np.testing.assert_array_equal(source[0].pixels, np.full((8, 8, 3), (9, 8, 7), np.uint8))
    np.testing.assert_array_equal(source[1].pixels, np.zeros((8, 8, 3), np.uint8))


def test_exif_orientation_is_respected(tmp_path):
    stored = np.zeros((8, 8, 3), np.uint8)
    stored[:4] = 255
    exif = PillowImage.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: the stored top is the right side
    PillowImage.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(open_images(tmp_path)[0][0].pixels, np.rot90(stored, k=-1))


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_pillow_s(tmp_path, orientation):
    stored = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    PillowImage.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    with PillowImage.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(open_images(tmp_path)[0][0].pixels, expected)


def test_exif_that_can_not_be_written_again_turns_the_picture_all_the_same(tmp_path):
    tags = struct.pack("<HHLHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHL", 0x100, 2, 4) + b"abc\0"  # a width of letters
    exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + tags + bytes(4)
    stored = np.zeros((8, 8, 3), np.uint8)
    stored[:4] = 255
    PillowImage.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=100)
    turned = open_images(tmp_path)[0][0].pixels
    assert turned[:, 4:].min() > 250 and turned[:, :4].max() < 5


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("exif", [b"", b"nonsense", b"MM"])
def test_a_picture_with_malformed_exif_data_is_upright(tmp_path, suffix, exif):
    PillowImage.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0" + exif)
    pixels = open_images(tmp_path)[0][0].pixels
    assert np.abs(pixels - np.array([200.0, 100.0, 50.0])).max() < 5
