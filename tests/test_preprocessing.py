"""Preprocessing: what files ask for, what is refused, and pixels, without the libraries that they come from."""

import dataclasses
import json
import re

import pytest

from cambrian.models.checkpoints.hugging_face_processor import hugging_face_preprocessing, hugging_face_processor
from cambrian.models.checkpoints.preprocessing import timm_preprocessing, torchvision_preprocessing
from cambrian.sharding import Preprocessing, UsageError

HALF, ONE = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)
SQUARE = Preprocessing((224, 224), (256, 256))
RESNET = {"crop_pct": 0.875, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "size": 224}


def of_processor(**config):
    return hugging_face_preprocessing(config, "preprocessor_config.json")


def of_class(name, **config):
    return of_processor(image_processor_type=f"{name}ImageProcessor", **config)


# Sizes and offsets


@pytest.mark.parametrize(
    ("resize", "resize_to", "picture", "resized"),
    [
        ("shortest_edge", (235, 235), (477, 720), (235, 354)),  # 354.7
        ("shortest_edge", (235, 235), (720, 477), (354, 235)),
        ("shortest_edge", (256, 256), (10, 10), (256, 256)),
        ("exact", (224, 160), (477, 720), (224, 160)),
        ("cover", (235, 168), (477, 720), (235, 355)),
        ("cover", (235, 168), (720, 300), (403, 168)),
        ("contain", (224, 224), (477, 720), (148, 224)),
        ("contain", (224, 224), (1, 5000), (1, 224)),
        ("none", None, (477, 720), (477, 720)),
    ],
)
def test_resized_sizes(resize, resize_to, picture, resized):
    assert Preprocessing((224, 224), resize_to, resize=resize).resized_size(*picture) == resized


@pytest.mark.parametrize(
    ("resized", "half_even", "floor"),
    [
        (224, (0, 0, 224), (0, 0, 224)),
        (225, (0, 0, 224), (0, 0, 224)),  # 0.5
        (227, (2, 0, 224), (1, 0, 224)),  # 1.5
        (229, (2, 0, 224), (2, 0, 224)),  # 2.5
        (256, (16, 0, 224), (16, 0, 224)),
        (221, (0, 1, 221), (0, 1, 221)),  # the odd pixel goes after
        (220, (0, 2, 220), (0, 2, 220)),
    ],
)
def test_offsets_of_the_crop(resized, half_even, floor):
    for rounding, span in (("half_even", half_even), ("floor", floor)):
        assert dataclasses.replace(SQUARE, offset_rounding=rounding).crop((resized, 224)) == (span, (0, 0, 224))


@pytest.mark.parametrize(
    ("preprocessing", "image_size", "expected"),
    [
        (SQUARE, 224, SQUARE),
        (SQUARE, 112, Preprocessing((112, 112), (128, 128))),
        (Preprocessing((224, 224), (235, 235)), 288, Preprocessing((288, 288), (302, 302))),
        (
            Preprocessing((224, 160), (256, 183), resize="cover"),
            112,
            Preprocessing((112, 112), (128, 128), resize="cover"),
        ),
        (
            Preprocessing((20, 10), (20, 20)),
            10,
            Preprocessing((10, 10), (20, 20)),
        ),
        (Preprocessing((8, 8), None, resize="none"), 6, Preprocessing((6, 6), None, resize="none")),
    ],
)
def test_another_image_size_keeps_the_crop(preprocessing, image_size, expected):
    assert preprocessing.with_size(image_size) == expected


# timm


def test_timm_defaults_and_forms():
    expected = Preprocessing((224, 224), (256, 256), interpolation="bicubic")
    assert timm_preprocessing({"num_classes": 3, "crop_pct": None}, "config.json") == expected
    config = {"input_size": [3, 224, 160], "crop_pct": 0.95, "mean": [0.5] * 3, "std": [1] * 3}
    expected = Preprocessing((224, 160), (235, 168), HALF, ONE, "cover", "bicubic")
    assert timm_preprocessing(config, "config.json") == expected
    expected = dataclasses.replace(expected, resize="exact")
    assert timm_preprocessing(config | {"crop_mode": "squash"}, "config.json") == expected
    expected = dataclasses.replace(expected, resize="contain", fill=(128, 128, 128))
    assert timm_preprocessing(config | {"crop_mode": "border"}, "config.json") == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"input_size": [1, 28, 28]}, "input_size must be 3, height, width, got [1, 28, 28]"),
        ({"input_size": [3, 28.5, 28]}, "input_size must be 3, height, width, got [3, 28.5, 28]"),
        ({"input_size": 224}, "input_size must be 3, height, width, got 224"),
        ({"crop_pct": 1e-320}, "crop_pct must be a number above 0, got 1e-320"),
        ({"crop_pct": "0.9"}, "crop_pct must be a number above 0, got '0.9'"),
        ({"crop_mode": "corner"}, "crop_mode must be one of center, squash, border, got 'corner'"),
        ({"interpolation": "random"}, "interpolation must be one of nearest, lanczos, bilinear"),
        ({"mean": [0.5]}, "mean must be three numbers, got [0.5]"),
        ({"std": [0, 1, 1]}, "std must be three finite numbers above 0, got (0.0, 1.0, 1.0)"),
    ],
)
def test_what_timm_cannot_mean_is_refused(config, message):
    with pytest.raises(UsageError, match=re.escape(f"m/config.json: {message}")):
        timm_preprocessing(config, "m/config.json")


# torchvision


@pytest.mark.parametrize(
    ("name", "resize"),
    [
        ("resnet50-11ad3fa6.pth", 232),
        ("weights/resnet50-0676ba61.pth", 256),
        ("resnet152-f82ba261.safetensors", 232),
        ("resnet50-19c8e357.pth", 256),
    ],
)
def test_torchvision_tells_by_its_file_names(name, resize):
    assert torchvision_preprocessing(name) == Preprocessing((224, 224), (resize, resize))


@pytest.mark.parametrize("name", ["model.pth", "resnet50-cd907fc2.pth"])
def test_other_file_names_do_not_tell(name):
    assert torchvision_preprocessing(name) is None


# transformers


def test_the_processor_of_resnets():
    expected = Preprocessing(
        (224, 224), (256, 256), interpolation="bicubic", resampler="torch", offset_rounding="floor"
    )
    assert of_processor(**RESNET) == expected
    without = {key: value for key, value in RESNET.items() if key != "crop_pct"}
    assert of_processor(feature_extractor_type="ConvNextFeatureExtractor", resample=3, **without) == expected
    warped = of_processor(**RESNET | {"size": {"shortest_edge": 384}})
    assert (warped.size, warped.resize, warped.resize_to) == ((384, 384), "exact", (384, 384))


@pytest.mark.parametrize(
    ("name", "config", "size", "resize", "resize_to"),
    [
        ("ConvNext", {"size": 223, "crop_pct": 0.9}, (223, 223), "shortest_edge", (247, 247)),
        ("ConvNext", {"do_resize": False, "do_center_crop": True, "crop_size": 200}, (200, 200), "none", None),
        ("ViT", {}, (224, 224), "exact", (224, 224)),
        ("ViT", {"size": 256}, (256, 256), "exact", (256, 256)),
        ("ViT", {"size": {"height": 224, "width": 160}}, (224, 160), "exact", (224, 160)),
        ("ViT", {"size": [256, 300], "do_center_crop": True, "crop_size": 224}, (224, 224), "exact", (256, 300)),
        (
            "ViT",
            {"size": 256, "default_to_square": False, "do_center_crop": True, "crop_size": 224},
            (224, 224),
            "shortest_edge",
            (256, 256),
        ),
        ("CLIP", {"size": {"shortest_edge": 256}}, (224, 224), "shortest_edge", (256, 256)),
        ("CLIP", {"size": 256, "crop_size": {"height": 9, "width": 8}}, (9, 8), "shortest_edge", (256, 256)),
        ("DeiT", {}, (224, 224), "exact", (256, 256)),
        ("MobileNetV2", {}, (224, 224), "shortest_edge", (256, 256)),
    ],
)
def test_sizes_of_processors(name, config, size, resize, resize_to):
    preprocessing = of_class(name, **config)
    assert (preprocessing.size, preprocessing.resize, preprocessing.resize_to) == (size, resize, resize_to)
    assert of_processor(image_processor_type=f"{name}ImageProcessorFast", **config) == preprocessing


@pytest.mark.parametrize(
    ("name", "config", "mean", "std"),
    [
        ("ViT", {}, HALF, HALF),
        ("ViT", {"do_normalize": False}, (0, 0, 0), ONE),
        # (x / 127.5 - mean) / std = (x / 255 - mean / 2) / (std / 2)
        ("ViT", {"rescale_factor": 1 / 127.5}, (0.25,) * 3, (0.25,) * 3),
        ("ViT", {"rescale_factor": 1 / 127.5, "do_normalize": False}, (0, 0, 0), HALF),
        ("ViT", {"do_rescale": False, "do_normalize": False}, (0, 0, 0), (1 / 255,) * 3),
        ("ViT", {"do_rescale": False, "image_mean": [51] * 3, "image_std": [255] * 3}, (0.2,) * 3, ONE),
        ("MobileViT", {}, (0, 0, 0), ONE),
    ],
)
def test_rescaling_and_normalising_become_mean_and_deviation(name, config, mean, std):
    preprocessing = of_class(name, **config)
    assert (preprocessing.mean, preprocessing.std) == (pytest.approx(mean), pytest.approx(std))


def test_channels_are_flipped_where_the_class_does():
    assert of_class("MobileViT").channels == "BGR"
    assert of_class("MobileViT", do_flip_channel_order=False).channels == "RGB"


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("Deta", {}, "image_processor_type must be one of BeitImageProcessor, BitImageProcessor"),
        ("ViT", {"resample": 6}, "resample must be from 0 to 5, got 6"),
        ("ViT", {"resample": 3.0}, "resample must be from 0 to 5, got 3.0"),
        (
            "ViT",
            {"size": {"longest_edge": 224}},
            "size must be shortest_edge, or height and width, in pixels, got",
        ),
        ("ViT", {"size": {"shortest_edge": 224, "longest_edge": 400}}, "size must be shortest_edge, or height"),
        ("ViT", {"size": {"height": 224.0, "width": 224}}, "size must be shortest_edge, or height and width"),
        ("ViT", {"size": 0}, "size must be shortest_edge, or height and width, in pixels, got 0"),
        ("ViT", {"size": {"shortest_edge": 224}}, "expected size with height and width, or do_center_crop"),
        (
            "ViT",
            {"do_center_crop": True},
            "crop_size must be shortest_edge, or height and width, in pixels, got {}",
        ),
        ("ViT", {"do_resize": False}, "expected size with height and width, or do_center_crop"),
        ("ViT", {"do_resize": "no"}, "do_resize must be true or false, got 'no'"),
        ("ViT", {"do_flip_channel_order": True}, "do_flip_channel_order must be off or absent for ViTImage"),
        ("ViT", {"do_pad": True}, "do_pad must be off or absent for ViTImageProcessor, got True"),
        ("ViT", {"crop_pct": 0.9}, "crop_pct must be off or absent for ViTImageProcessor, got 0.9"),
        ("ViT", {"image_mean": [0.5]}, "image_mean must be three numbers, got [0.5]"),
        ("ViT", {"image_std": [0, 0, 0]}, "std must be three finite numbers above 0, got"),
        ("ViT", {"rescale_factor": 0}, "rescale_factor must be a number above 0, got 0"),
        ("ConvNext", {"size": {"height": 224, "width": 224}}, "size of ConvNextImageProcessor must be shortest"),
        ("ConvNext", {"size": 224, "crop_pct": 0}, "crop_pct must be a number above 0, got 0"),
        ("ConvNext", {"size": 224, "do_center_crop": True, "crop_size": 200}, "crop_size must be height and"),
        ("CLIP", {"crop_size": {"shortest_edge": 224}}, "crop_size must be height and width"),
        ("MobileViT", {"do_normalize": True}, "do_normalize must be off or absent for MobileViTImageProcessor"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(name, config, message):
    with pytest.raises(UsageError, match=re.escape(f"preprocessor_config.json: {message}")) as raised:
        of_class(name, **config)
    assert "\n" not in str(raised.value)


def test_what_has_no_effect_or_is_off_is_accepted():
    inert = {"do_pad": None, "do_flip_channel_order": False, "use_fast": True, "data_format": "channels_first"}
    assert of_processor(**RESNET, **inert, do_convert_rgb=True) == of_processor(**RESNET)


# Written and read back


ALL = [
    SQUARE,
    Preprocessing((32, 30), (32, 30), HALF, (0.1, 0.2, 0.3), "exact", "lanczos", "torch", "floor"),
    Preprocessing((32, 30), (40, 40), resampler="torch", offset_rounding="floor"),
    Preprocessing((32, 30), (35, 33), resize="cover", interpolation="box"),
    Preprocessing((32, 30), (35, 33), resize="contain", fill=(1, 2, 3)),
    Preprocessing((32, 30), None, resize="none", resampler="torch", offset_rounding="floor"),
    of_processor(**RESNET),
    of_class("MobileViT"),
    of_class("CLIP", resample=0),
]


@pytest.mark.parametrize("preprocessing", ALL)
def test_json_and_an_export_are_read_back_unchanged(preprocessing):
    text = json.dumps(preprocessing.to_json())
    back = Preprocessing.from_json(json.loads(text), "manifest.json")
    assert back == preprocessing and hash(back) == hash(preprocessing)
    config = json.loads(json.dumps(hugging_face_processor(preprocessing)))
    assert of_processor(**config) == preprocessing
    # transformers is told the whole where it follows the same rules.
    told = preprocessing.resampler == "torch" and preprocessing.channels == "RGB"
    assert ("cambrian_preprocessing" in config) != told


def test_an_export_that_was_changed_by_half_is_refused():
    config = hugging_face_processor(SQUARE)
    with pytest.raises(UsageError, match="cambrian_preprocessing must agree with the other keys"):
        of_processor(**config | {"resample": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "expected preprocessing with channels, fill"),
        ({"size": 224}, "size must be height and width of at least 1 pixel, got 224"),
        ({"size": [224, 0]}, "size must be height and width of at least 1 pixel, got (224, 0)"),
        ({"size": [True, 1]}, "size must be height and width of at least 1 pixel, got (True, 1)"),
        ({"resize_to": None}, "resize_to must be height and width, or None without resizing, got None"),
        ({"resize": "none"}, "resize_to must be height and width, or None without resizing, got (256, 256)"),
        ({"resize_to": [256, 255]}, "resize_to must be square for shortest_edge, got (256, 255)"),
        (
            {"resize": ["exact"]},
            "resize must be one of shortest_edge, cover, contain, exact, none, got ('exact',)",
        ),
        ({"interpolation": "cubic"}, "interpolation must be one of nearest, lanczos"),
        ({"resampler": "jax"}, "resampler must be one of pillow, torch, got 'jax'"),
        ({"offset_rounding": None}, "offset_rounding must be one of half_even, floor, got None"),
        ({"channels": "rgb"}, "channels must be one of RGB, BGR, got 'rgb'"),
        ({"mean": [0.5, 0.5]}, "mean must be three numbers from 0 to 1, as pixels are scaled to, got (0.5, 0.5)"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean must be three numbers"),
        ({"mean": [123, 116, 103]}, "mean must be three numbers from 0 to 1, as pixels are scaled to, got (123, "),
        ({"mean": [0.5, 0.5, -0.1]}, "mean must be three numbers from 0 to 1, as pixels are scaled to, got (0.5, "),
        ({"std": [0.5, 0.5, 0]}, "std must be three finite numbers above 0, got (0.5, 0.5, 0)"),
        ({"std": "0.5"}, "std must be three finite numbers above 0, got '0.5'"),
        ({"fill": [0, 0, 256]}, "fill must be three integers from 0 to 255, got (0, 0, 256)"),
    ],
)
def test_json_of_another_form_is_refused(changes, message):
    with pytest.raises(UsageError, match=re.escape(f"manifest.json: {message}")):
        Preprocessing.from_json(SQUARE.to_json() | changes, "manifest.json")


@pytest.mark.parametrize("value", [None, [], {}, {"size": [224, 224]}])
def test_json_without_all_fields_is_refused(value):
    with pytest.raises(UsageError, match="manifest.json: expected preprocessing with"):
        Preprocessing.from_json(value, "manifest.json")
