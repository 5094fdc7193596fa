"""Pixels that a model reads: those of timm, torchvision and transformers, from pictures of any size."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from cambrian.commands.images import preprocess as preprocess_module
from cambrian.commands.images.preprocess import preprocess
from cambrian.models.checkpoints.hugging_face_processor import hugging_face_preprocessing
from cambrian.models.checkpoints.preprocessing import timm_preprocessing, torchvision_preprocessing
from cambrian.sharding import Preprocessing

CASES = Path(__file__).parents[2] / "shared" / "cases"
HALF = (0.5, 0.5, 0.5)


def noise(width, height):
    pixels = np.random.default_rng(width + 1000 * height).integers(256, size=(height, width, 3), dtype=np.uint8)
    return PillowImage.fromarray(pixels)


def difference(one, other):
    return int(np.abs(np.asarray(one, np.int32) - np.asarray(other, np.int32)).max())


@pytest.mark.skipif(not CASES.is_dir(), reason=f"needs {CASES}")
@pytest.mark.parametrize(
    ("key", "picture"),
    [
        ("timm_resnet50_a1_in1k", "picture_720x477.png"),
        ("torchvision_v2", "picture_720x477.png"),
        ("hugging_face_convnext_processor", "picture_723x473.png"),
    ],
)
def test_squares_of_the_libraries_are_met(key, picture):
    if key.startswith("timm"):
        config = json.loads((CASES / "timm_config.json").read_text())
        preprocessing = timm_preprocessing(config["pretrained_cfg"], "config.json")
    elif key.startswith("torchvision"):
        preprocessing = torchvision_preprocessing("resnet50-11ad3fa6.pth")
        assert preprocessing is not None
    else:
        config = json.loads((CASES / "hugging_face_preprocessor_config.json").read_text())
        preprocessing = hugging_face_preprocessing(config, "preprocessor_config.json")
    with np.load(CASES / "squares.npz") as squares:
        expected = squares[key]
    with PillowImage.open(CASES / picture) as image:
        assert difference(preprocess(image.convert("RGB"), preprocessing), expected) <= 2


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (40, 40), (91, 20), (7, 5), (1, 3), (300, 2), (2, 300)])
@pytest.mark.parametrize("interpolation", ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"])
@pytest.mark.parametrize(
    ("resize", "resize_to"), [("shortest_edge", (35, 35)), ("cover", (36, 31)), ("exact", (35, 40))]
)
def test_the_part_is_that_of_the_picture_resized_as_a_whole(size, interpolation, resize, resize_to):
    image = noise(*size)
    preprocessing = Preprocessing((32, 30), resize_to, resize=resize, interpolation=interpolation)
    height, width = preprocessing.resized_size(image.height, image.width)
    whole = image.resize((width, height), PillowImage.Resampling[interpolation.upper()])
    left, top = round((width - 30) / 2), round((height - 32) / 2)
    expected = whole.crop((left, top, left + 30, top + 32))
    assert difference(preprocess(image, preprocessing), expected) <= (2 if interpolation == "bilinear" else 0)


@pytest.mark.parametrize("size", [(300, 2), (2, 300), (91, 20), (7, 5), (700, 3)])
@pytest.mark.parametrize("interpolation", ["lanczos", "bilinear", "bicubic", "hamming"])
@pytest.mark.parametrize("resampler", ["pillow", "torch"])
def test_a_picture_too_long_to_be_resized_as_a_whole(monkeypatch, size, interpolation, resampler):
    preprocessing = Preprocessing((32, 32), (35, 35), interpolation=interpolation, resampler=resampler)
    expected = preprocess(noise(*size), preprocessing)
    monkeypatch.setattr(preprocess_module, "_MOST_PIXELS", 1)
    assert difference(preprocess(noise(*size), preprocessing), expected) <= 2


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000), (30_000, 10)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "box", "nearest"])
@pytest.mark.parametrize("resampler", ["pillow", "torch"])
def test_a_long_thin_picture_takes_little_memory(size, interpolation, resampler):
    image = PillowImage.new("RGB", size, (1, 2, 3))
    preprocessing = Preprocessing((224, 224), (256, 256), interpolation=interpolation, resampler=resampler)
    # Resized as a whole it would take up to 26 GB.
    assert (preprocess(image, preprocessing) == (1, 2, 3)).all()


def test_torch_resizes_columns_first():
    # A column of 0 and 255 next to each other: bicubic overshoots, and what is clipped first differs.
    image = noise(60, 90)
    preprocessing = Preprocessing((64, 64), (64, 64), resize="exact", interpolation="bicubic", resampler="torch")
    columns = image.resize((64, 90), PillowImage.Resampling.BICUBIC)
    expected = columns.resize((64, 64), PillowImage.Resampling.BICUBIC)
    np.testing.assert_array_equal(preprocess(image, preprocessing), np.asarray(expected))


def test_nearest_follows_the_arithmetic_of_each_library():
    # 500 → 308 and 333: centres fall exactly between two pixels, where float32 and a running sum in float64 differ.
    image = noise(500, 477)
    for resampler in ("pillow", "torch"):
        preprocessing = Preprocessing((333, 308), (333, 308), HALF, HALF, "exact", "nearest", resampler)
        pixels = preprocess(image, preprocessing)
        scale = 500 / 308
        if resampler == "torch":
            columns = np.floor((np.arange(308, dtype=np.float32) + np.float32(0.5)) * np.float32(scale)).astype(int)
            rows = np.floor((np.arange(333, dtype=np.float32) + np.float32(0.5)) * np.float32(477 / 333)).astype(int)
            np.testing.assert_array_equal(pixels, np.asarray(image)[rows][:, columns])
        else:
            expected = image.resize((308, 333), PillowImage.Resampling.NEAREST)
            np.testing.assert_array_equal(pixels, np.asarray(expected))


def test_a_small_picture_is_padded_around_its_centre():
    image = PillowImage.new("RGB", (2, 5), (10, 20, 30))
    preprocessing = Preprocessing((4, 5), None, resize="none", fill=(1, 2, 3), channels="BGR")
    pixels = preprocess(image, preprocessing)
    assert pixels.shape == (4, 5, 3) and pixels.dtype == np.uint8 and pixels.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(pixels[:, [0, 3, 4]], np.full((4, 3, 3), (3, 2, 1)))
    np.testing.assert_array_equal(pixels[:, 1:3], np.full((4, 2, 3), (30, 20, 10)))


def test_a_picture_of_the_right_size_is_unchanged():
    image = noise(32, 32)
    for preprocessing in (Preprocessing((32, 32), (32, 32)), Preprocessing((32, 32), None, resize="none")):
        np.testing.assert_array_equal(preprocess(image, preprocessing), np.asarray(image))
