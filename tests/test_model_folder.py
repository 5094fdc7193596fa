"""Model folders of transformers and timm: what their configurations tell, what contradicts, and the way back."""

import json
import re
import resource
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
from cambrian.sharding import Preprocessing, UsageError

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
CONV_NEXT_PREPROCESSING = Preprocessing(
    (224, 224), (256, 256), interpolation="bicubic", resampler="torch", offset_rounding="floor"
)
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
    assert weights.description == Description(CONV_NEXT_PREPROCESSING, LABELS)
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
    assert weights.description == Description(
        Preprocessing((160, 160), (168, 168), (0.5,) * 3, (0.25,) * 3, interpolation="bicubic"), LABELS
    )
    # Once, all of it stood beside the architecture.
    old = {"architecture": "resnet11", "num_classes": 3, "labels": list(LABELS), "first_conv": "conv1"} | pretrained
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert read_weights(tmp_path).description == weights.description
    assert read_weights(tmp_path).notes == weights.notes
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": "resnetblur11"}))
    with pytest.raises(UsageError, match=r"architecture must be 'resnet11', .* got 'resnetblur11'"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "vit"}, ": model_type must be 'resnet', as the tensors are computed here, got 'vit'"),
        ({"depths": [2, 2]}, ": depths must be [1, 2], as the tensors are computed here, got [2, 2]"),
        ({"embedding_size": 64}, ": embedding_size must be 4"),
        ({"hidden_act": "silu"}, ": hidden_act must be 'relu'"),
        ({"downsample_in_bottleneck": True}, ": downsample_in_bottleneck must be False"),
        ({"stem_stride": 1}, ": stem_stride must be 2"),
        ({"num_labels": 4}, ": num_labels must be 3"),
        ({"quantization_config": {"quant_method": "gptq"}}, ": quantization_config must be that of compressed-tensors"),
        ({"id2label": {"0": "a", "1": "b"}}, " must have labels for 3 classes, got 2"),
        (
            {"id2label": {"0": "a", "1": "b", "3": "c"}},
            ": id2label must name each class from 0 on, got 3 labels from 0",
        ),
        ({"id2label": {"0": "a", "1": "b", "2": 2}}, ": labels in id2label must be strings, got 2"),
        ({"id2label": ["a", "b", "c"]}, ": id2label must be class number → label"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(tmp_path, changes, message):
    folder = write(tmp_path, CONFIG | changes)
    with pytest.raises(UsageError, match=re.escape(f"{folder / 'config.json'}{message}")):
        read_weights(folder)


def test_unknown_keys_are_listed_in_one_note(tmp_path):
    folder = write(tmp_path, CONFIG | {"se_ratio": 4, "auto_map": {}, "transformers_version": "5.24.0"})
    path = folder / "config.json"
    assert read_weights(folder).notes == (f"{path}: not understood, and left out of account: auto_map, se_ratio",)


def test_the_file_of_tensors_in_a_folder_is_read_as_the_folder(tmp_path):
    folder = write(tmp_path, CONFIG, CONV_NEXT)
    of_file, of_folder = read_weights(folder / "model.safetensors"), read_weights(folder)
    assert (of_file.architecture, of_file.description) == (of_folder.architecture, of_folder.description)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"hidden_act": "gelu"}))
    with pytest.raises(UsageError, match="hidden_act must be 'relu'"):
        read_weights(folder / "model.safetensors")


def write_timm(folder: Path, **config: Any) -> Path:
    variables = random_variables(SMALL)
    to_torch = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    tensors = {torchvision_name(n): np.ascontiguousarray(v.transpose(to_torch[v.ndim])) for n, v in variables.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet11.a1_in1k", **config}))
    return folder


# As timm 1.0.31 fills them in, with rates that have no effect at inference.
MODEL_ARGS = {
    "num_classes": 3,
    "in_chans": 3,
    "global_pool": "avg",
    "act_layer": "ReLU",
    "aa_layer": None,
    "drop_rate": 0.2,
    "drop_path_rate": 0.1,
}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_network_of_timm_with_arguments_that_change_nothing(tmp_path, wrapped):
    config = {"num_classes": 3, "num_features": 32, "global_pool": "avg", "model_args": MODEL_ARGS}
    if wrapped:  # in transformers' TimmWrapper
        config |= {"model_type": "timm_wrapper", "do_pooling": True, "initializer_range": 0.02}
    weights = read_weights(write_timm(tmp_path, **config))
    assert (weights.architecture, weights.notes) == (SMALL, ())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_args": MODEL_ARGS | {"act_layer": "silu"}}, "model_args.act_layer must be 'relu'"),
        ({"model_args": {"global_pool": "max"}}, "model_args.global_pool must be 'avg'"),
        ({"model_args": {"aa_layer": "blurpool"}}, "model_args.aa_layer must be None"),
        ({"model_args": {"output_stride": 4}}, "model_args.output_stride must be 8"),
        ({"model_args": {"replace_stem_pool": True}}, "model_args.replace_stem_pool must be False"),
        ({"model_args": ["act_layer"]}, "model_args must be an object"),
        ({"global_pool": "catavgmax"}, "global_pool must be 'avg'"),
        ({"num_classes": 4}, "num_classes must be 3"),
        ({"pretrained_cfg": [1]}, "pretrained_cfg must be an object"),
        ({"label_names": ["a", "b", 3]}, "labels in label_names must be strings, got 3"),
    ],
)
def test_a_network_of_timm_that_is_not_computed_here_is_refused(tmp_path, config, message):
    folder = write_timm(tmp_path, **config)
    with pytest.raises(UsageError, match=re.escape(f"{folder / 'config.json'}: {message}")):
        read_weights(folder)


def test_unknown_arguments_of_timm_are_listed_in_one_note(tmp_path):
    folder = write_timm(tmp_path, model_args={"mystery": 1, "attn": "se", "nothing": None}, size_hint=7)
    unknown = "model_args.attn, model_args.mystery, size_hint"
    assert read_weights(folder).notes == (
        f"{folder / 'config.json'}: not understood, and left out of account: {unknown}",
    )


def test_preprocessing_that_is_not_understood_is_refused(tmp_path):
    folder = write(tmp_path, CONFIG, CONV_NEXT | {"do_pad": True})
    with pytest.raises(UsageError, match=re.escape(f"{folder / 'preprocessor_config.json'}: do_pad must be off")):
        read_weights(folder)


def test_names_of_timm_carry_their_descriptions(tmp_path):
    described = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish"}
    folder = write_timm(tmp_path, label_names=[*described, "own"], label_descriptions=described)
    labels = ("n01440764 tench, Tinca tinca", "n01443537 goldfish", "own")
    assert read_weights(folder).description.labels == labels


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be a readable JSON file"),
        ("[" * 100_000, "must be a readable JSON file"),
        ("[]", "must hold a JSON object, got list"),
        ("{}", "must have model_type"),
    ],
)
def test_a_config_of_another_form_is_refused(tmp_path, content, message):
    folder = write(tmp_path, CONFIG)
    (folder / "config.json").write_text(content)
    with pytest.raises(UsageError, match=re.escape(f"{folder / 'config.json'} {message}")):
        read_weights(folder)


def test_a_folder_without_tensors_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UsageError, match=re.escape("must hold model.safetensors or pytorch_model.bin, got")):
        read_weights(tmp_path)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize(
    "description",
    [
        Description(),
        Description(CONV_NEXT_PREPROCESSING, LABELS),
        Description(Preprocessing((32, 30), (35, 33), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "cover", "lanczos"), LABELS),
    ],
)
def test_an_export_is_read_back_unchanged(tmp_path, stem, description):
    architecture = Architecture(stem, (1, 1), False, 3, width=4)
    variables = random_variables(architecture)
    export_hugging_face(Weights(architecture, variables, description), tmp_path / "model")
    back = read_weights(tmp_path / "model")
    assert (back.architecture, back.description, back.notes) == (architecture, description, ())
    for name, value in variables.items():
        np.testing.assert_array_equal(back.variables[name], value, strict=True)


def test_an_export_by_the_name_of_a_folder_leaves_nothing_of_other_weights_there(tmp_path):
    for description in (Description(CONV_NEXT_PREPROCESSING, LABELS), Description()):
        export_hugging_face(Weights(SMALL, random_variables(SMALL), description), str(tmp_path))
        assert read_weights(str(tmp_path)).description == description


def test_an_export_that_fails_names_the_file_and_leaves_none(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes a file
    try:
        with pytest.raises(OSError, match=r"^\[Errno 27\] File too large: '.*/model.safetensors'$"):
            export_hugging_face(Weights(SMALL, random_variables(SMALL)), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_an_export_holds_what_pytorch_asks_for(tmp_path):
    export_hugging_face(Weights(SMALL, random_variables(SMALL)), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    assert len(counters) == sum(name.endswith("running_var") for name in tensors) > 0
    assert all(tensors[name].dtype == np.int64 for name in counters)
