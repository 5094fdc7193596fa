"""Model folders of transformers and timm: what their configurations tell, what contradicts, and the way back."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cambrian.models.checkpoints.conversion import export_tensors
from cambrian.models.checkpoints.description import Description
from cambrian.models.checkpoints.export import export_hugging_face
from cambrian.models.checkpoints.naming import torchvision_name
from cambrian.models.checkpoints.weights import Weights, read_weights
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.variables import random_variables
from cambrian.sharding import UsageError

SMALL = Architecture("imagenet", (1, 2), True, 3, width=4)
# As transformers 5.23 writes them, keys without meaning for the network left out.
CONFIG = {
    "architectures": ["ResNetForImageClassification"],
    "model_type": "resnet",
    "num_channels": 3,
    "embedding_size": 4,
    "hidden_sizes": [16, 32],
    "depths": [1, 2],
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
    "id2label": {"0": "tench, Tinca tinca", "1": "goldfish", "2": "great white shark"},
}
CONV_NEXT = {
    "image_processor_type": "ConvNextImageProcessor",
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 224},
}
IMAGENET = Description(224, 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LABELS = ("tench, Tinca tinca", "goldfish", "great white shark")


def write(folder: Path, config: dict[str, Any], preprocessor: dict[str, Any] | None = None) -> Path:
    save_file(export_tensors(SMALL, random_variables(SMALL)), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def test_a_folder_of_transformers(tmp_path):
    weights = read_weights(write(tmp_path, CONFIG, CONV_NEXT))
    assert weights.architecture == SMALL
    assert weights.description == Description(224, 0.875, "bicubic", IMAGENET.mean, IMAGENET.std, LABELS)
    assert weights.told() == {"depth": 11, "stem": "imagenet", "num_classes": 3, **weights.description.known()}
    assert weights.notes == ()
    for name, value in random_variables(SMALL).items():
        np.testing.assert_array_equal(weights.variables[name], value, strict=True)


def test_a_folder_without_preprocessing_and_names_tells_nothing(tmp_path):
    unnamed = CONFIG | {"id2label": {str(number): f"LABEL_{number}" for number in range(3)}}
    weights = read_weights(write(tmp_path, unnamed))
    assert weights.description == Description() and weights.description.known() == {}


def test_a_folder_of_timm(tmp_path):
    variables = random_variables(SMALL)
    to_torch = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    tensors = {torchvision_name(n): np.ascontiguousarray(v.transpose(to_torch[v.ndim])) for n, v in variables.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    pretrained = {
        "input_size": [3, 160, 160],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }
    config = {"architecture": "resnet11.a1_in1k", "label_names": list(LABELS), "pretrained_cfg": pretrained}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = read_weights(tmp_path)
    assert weights.architecture == SMALL
    assert weights.description == Description(160, 0.95, "bicubic", (0.5,) * 3, (0.25,) * 3, LABELS)
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": "resnetblur11"}))
    with pytest.raises(
        UsageError, match="needs architecture resnet11, as its tensors are computed here, got resnetblur11"
    ):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"size": 224}, IMAGENET),  # as older versions wrote it
        ({"size": {"shortest_edge": 224}, "crop_pct": None}, (224, 1.0)),
        ({"size": {"shortest_edge": 256}, "crop_pct": None, "do_center_crop": True, "crop_size": 224}, (224, 0.875)),
        (
            {"size": {"shortest_edge": 320}, "do_center_crop": True, "crop_size": {"height": 288, "width": 288}},
            (288, 0.9),
        ),
        ({"size": 256, "do_center_crop": False, "crop_size": 224, "crop_pct": None}, (256, 1.0)),
    ],
)
def test_forms_of_resizing(tmp_path, changes, expected):
    description = read_weights(write(tmp_path, CONFIG, CONV_NEXT | changes)).description
    if isinstance(expected, Description):
        expected = expected.image_size, expected.crop_fraction
    assert (description.image_size, description.crop_fraction) == expected


@pytest.mark.parametrize(
    "changes", [{"size": {"height": 224, "width": 224}, "crop_pct": None}, {"size": {"shortest_edge": 384}}]
)
def test_warping_is_noted(tmp_path, changes):
    weights = read_weights(write(tmp_path, CONFIG, CONV_NEXT | changes))
    assert weights.description.crop_fraction == 1.0
    (note,) = weights.notes
    assert note.startswith("the weights' preprocessing warps images to squares")


def test_normalisation_of_pixels_that_are_not_scaled_to_one(tmp_path):
    description = read_weights(write(tmp_path, CONFIG, CONV_NEXT | {"rescale_factor": 1 / 127.5})).description
    # (x / 127.5 - mean) / std = (x / 255 - mean / 2) / (std / 2)
    assert description.mean == pytest.approx((0.2425, 0.228, 0.203))
    assert description.std == pytest.approx((0.1145, 0.112, 0.1125))
    description = read_weights(write(tmp_path, CONFIG, CONV_NEXT | {"do_normalize": False})).description
    assert (description.mean, description.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "vit"}, "needs model_type resnet, as its tensors are computed here, got vit"),
        ({"depths": [2, 2]}, "needs depths [1, 2], as its tensors are computed here, got [2, 2]"),
        ({"hidden_act": "silu"}, "needs hidden_act relu"),
        ({"downsample_in_bottleneck": True}, "needs downsample_in_bottleneck False"),
        ({"stem_stride": 1}, "needs stem_stride 2, as its tensors are computed here, got 1"),
        ({"id2label": {"0": "a", "1": "b"}}, "needs labels for 3 classes, got 2"),
        (
            {"id2label": {"0": "a", "1": "b", "3": "c"}},
            "needs id2label for each class from 0 on, got 3 labels from 0 on",
        ),
        ({"id2label": ["a", "b", "c"]}, "needs id2label as class number → label"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(tmp_path, changes, message):
    folder = write(tmp_path, CONFIG | changes)
    with pytest.raises(UsageError, match=re.escape(f"{folder / 'config.json'} {message}")):
        read_weights(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample": 9}, "needs resample from 0 to 5, got 9"),
        ({"size": {"height": 224, "width": 160}}, "needs a square size in pixels"),
        ({"image_mean": [0.5]}, "needs three numbers as image_mean, got [0.5]"),
        ({"crop_pct": 1.5}, "needs a crop of at most the resized image, got 1.5 of it"),
    ],
)
def test_preprocessing_that_cannot_be_computed_is_refused(tmp_path, changes, message):
    folder = write(tmp_path, CONFIG, CONV_NEXT | changes)
    with pytest.raises(UsageError, match=re.escape(f"{folder / 'preprocessor_config.json'} {message}")):
        read_weights(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "must be a readable JSON file"), ("[]", "must hold a JSON object, got list"), ("{}", "needs model_type")],
)
def test_a_config_of_another_form_is_refused(tmp_path, content, message):
    folder = write(tmp_path, CONFIG)
    (folder / "config.json").write_text(content)
    with pytest.raises(UsageError, match=re.escape(f"{folder / 'config.json'} {message}")):
        read_weights(folder)


def test_a_folder_without_tensors_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UsageError, match=re.escape("needs model.safetensors or pytorch_model.bin, got")):
        read_weights(tmp_path)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize(
    "description", [Description(), Description(32, 1.0, "lanczos", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), LABELS)]
)
def test_an_export_is_read_back_unchanged(tmp_path, stem, description):
    architecture = Architecture(stem, (1, 1), False, 3, width=4)
    variables = random_variables(architecture)
    export_hugging_face(Weights(architecture, variables, description), tmp_path / "model")
    back = read_weights(tmp_path / "model")
    assert (back.architecture, back.description, back.notes) == (architecture, description, ())
    for name, value in variables.items():
        np.testing.assert_array_equal(back.variables[name], value, strict=True)


def test_an_export_holds_what_pytorch_asks_for(tmp_path):
    export_hugging_face(Weights(SMALL, random_variables(SMALL)), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    assert len(counters) == sum(name.endswith("running_var") for name in tensors) > 0
    assert all(tensors[name].dtype == np.int64 for name in counters)
