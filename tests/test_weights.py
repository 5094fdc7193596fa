"""Checkpoints in files: formats, names, dtypes and containers that are read, and what is refused by name."""

import dataclasses
import io
import json
import os
import re

import ml_dtypes
import numpy as np
import pytest

from cambrian.models.checkpoints.naming import NAMINGS, hugging_face_name, torchvision_name
from cambrian.models.checkpoints.weights import read_weights
from cambrian.models.resnet.architecture import DEPTHS, Architecture
from cambrian.models.resnet.variables import random_variables
from cambrian.sharding import UsageError
from checkpoint_tensors import SMALL, checkpoint, saved


@pytest.mark.parametrize(
    ("variable", "torchvision", "hugging_face"),
    [
        ("conv1.kernel", "conv1.weight", "resnet.embedder.embedder.convolution.weight"),
        ("bn1.mean", "bn1.running_mean", "resnet.embedder.embedder.normalization.running_mean"),
        (
            "layer1.0.conv1.kernel",
            "layer1.0.conv1.weight",
            "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight",
        ),
        (
            "layer3.22.bn3.var",
            "layer3.22.bn3.running_var",
            "resnet.encoder.stages.2.layers.22.layer.2.normalization.running_var",
        ),
        (
            "layer4.0.downsample.conv.kernel",
            "layer4.0.downsample.0.weight",
            "resnet.encoder.stages.3.layers.0.shortcut.convolution.weight",
        ),
        (
            "layer4.0.downsample.bn.scale",
            "layer4.0.downsample.1.weight",
            "resnet.encoder.stages.3.layers.0.shortcut.normalization.weight",
        ),
        ("fc.kernel", "fc.weight", "classifier.1.weight"),
        ("fc.bias", "fc.bias", "classifier.1.bias"),
    ],
)
def test_names(variable, torchvision, hugging_face):
    assert (torchvision_name(variable), hugging_face_name(variable)) == (torchvision, hugging_face)


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_a_checkpoint_gives_architecture_and_variables(tmp_path, naming, bottleneck, stem):
    architecture = Architecture(stem, (2, 1, 1), bottleneck, 7, width=4)
    weights = read_weights(saved(checkpoint(architecture, naming), tmp_path))
    found, variables = weights.architecture, weights.variables
    expected = random_variables(architecture)
    assert found == architecture
    assert list(variables) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(variables[name], value, strict=True)
        assert variables[name].flags.c_contiguous


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_depth_is_recognised(tmp_path, naming, depth):
    blocks, bottleneck = DEPTHS[depth]
    architecture = Architecture("imagenet", blocks, bottleneck, 3, width=1)
    found = read_weights(saved(checkpoint(architecture, naming), tmp_path)).architecture
    assert (found.depth, found.blocks) == (depth, blocks)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32(tmp_path, dtype):
    tensors = {name: value.astype(dtype) for name, value in checkpoint(SMALL).items() if value.ndim}
    variables = read_weights(saved(tensors, tmp_path)).variables
    assert {value.dtype for value in variables.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(variables["fc.bias"], tensors["fc.bias"].astype(np.float32))


@pytest.mark.parametrize(
    "key",
    [
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.conv1.weight",
        "layer1.0.conv3.weight",
        "layer2.0.conv2.weight",
        "layer2.1.conv1.weight",
        "layer2.0.downsample.1.bias",
        "fc.weight",
        "fc.bias",
    ],
)
def test_a_missing_tensor_is_named(tmp_path, key):
    tensors = checkpoint(SMALL)
    del tensors[key]
    path = saved(tensors, tmp_path)
    with pytest.raises(UsageError, match=re.escape(key)) as error:
        read_weights(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("fc.weight", np.ones((5, 31), np.float32), "fc.weight of {path} must have shape (5, 32), got (5, 31)"),
        ("fc.weight", np.ones(5, np.float32), "fc.weight of {path} must have shape (classes, channels), got (5,)"),
        ("conv1.weight", np.ones((4, 3, 5, 5), np.float32), "conv1.weight of {path} must have a kernel of 7×7 or 3×3"),
        ("conv1.weight", np.ones((4, 1, 3, 3), np.float32), "conv1.weight of {path} must have shape (4, 3, 3, 3)"),
        (
            "layer1.0.conv2.weight",
            np.ones((8, 4, 3, 3), np.float32),
            "layer1.0.conv2.weight of {path} must have shape (4, 4, 3, 3), got (8, 4, 3, 3)",
        ),
        ("fc.bias", np.ones(5, np.int32), "fc.bias of {path} must hold floating-point numbers, got int32"),
        ("fc.bias", np.ones(5, np.complex64), "fc.bias of {path} must hold floating-point numbers, got complex64"),
        ("fc.bias", np.ones(5, np.int8), "weights must have the tensor fc.bias_scale, which {path} lacks"),
        (
            "fc.bias",
            np.array([0, np.nan, 0, np.inf, 0], np.float16),
            "fc.bias of {path} must be finite in float32, got nan among 2 such values",
        ),
        ("bn1.weight", np.full(4, -1e300), "bn1.weight of {path} must be finite in float32, got -1e+300 among 4"),
        (
            "layer1.0.bn2.running_var",
            np.array([1, 0, -0.5, -2], np.float32),
            "layer1.0.bn2.running_var of {path} must hold variances of at least 0, got -2.0",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, key, value, message):
    path = saved(checkpoint(SMALL) | {key: value}, tmp_path)
    with pytest.raises(UsageError, match=re.escape(message.format(path=path))):
        read_weights(path)


@pytest.mark.parametrize(
    "key", ["layer1.0.se.fc1.weight", "layer2.3.conv1.weight", "conv1.bias", "fc.num_batches_tracked", "aux.weight"]
)
def test_a_tensor_left_over_is_named(tmp_path, key):
    path = saved(checkpoint(SMALL) | {key: np.ones(4, np.float32)}, tmp_path)
    with pytest.raises(UsageError, match=re.escape(f"{path} also has {key}")):
        read_weights(path)


@pytest.mark.parametrize(
    ("tensors", "got"),
    [
        ({}, "no tensors"),
        (
            {key.replace("layer", "block"): value for key, value in checkpoint(SMALL).items()},
            "block1.0.bn1.bias, block1.0.bn1.num_batches_tracked, block1.0.bn1.running_mean and 71 more",
        ),
    ],
    ids=["empty", "foreign"],
)
def test_an_unknown_naming_is_refused(tmp_path, tensors, got):
    path = saved(tensors, tmp_path)
    with pytest.raises(UsageError, match=rf"a ResNet.s, with .* and a first block, {re.escape(f'{path} has {got}')}"):
        read_weights(path)


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone.", "model.", "timm_model.", "model.module."])
def test_prefixes_of_wrappers_are_stripped_and_noted(tmp_path, naming, prefix):
    path = saved({prefix + key: value for key, value in checkpoint(SMALL, naming).items()}, tmp_path)
    weights = read_weights(path)
    assert weights.architecture == SMALL
    assert weights.notes[0] == f"prefix {prefix} stripped from tensor names in {path}"
    for name, value in random_variables(SMALL).items():
        np.testing.assert_array_equal(weights.variables[name], value, strict=True)


@pytest.mark.parametrize("prefix", ["", "model_ema."])
@pytest.mark.parametrize("wrapped", ["module.", "module.module."])
def test_the_counter_of_an_averaged_model_is_dropped(tmp_path, prefix, wrapped):
    tensors = {f"{prefix}{wrapped}{key}": value for key, value in checkpoint(SMALL).items()}
    weights = read_weights(saved(tensors | {f"{prefix}n_averaged": np.array(9, np.int64)}, tmp_path))
    assert weights.architecture == SMALL
    path = saved(tensors | {"epochs.n_averaged": np.array(9, np.int64)}, tmp_path)
    with pytest.raises(UsageError, match="also has epochs.n_averaged"):
        read_weights(path)


def without_head(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: value for key, value in tensors.items() if not key.startswith(("fc.", "classifier."))}


HEAD = {"head.0.weight": np.ones((5, 32), np.float32), "head.0.bias": np.ones(5, np.float32)}
WRAPPED = {f"backbone.{key}": value for key, value in without_head(checkpoint(SMALL)).items()}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without_head(checkpoint(SMALL)), "the last layer fc.weight, {path} has none"),
        (without_head(checkpoint(SMALL, "Hugging Face")), "the last layer classifier.1.weight, {path} has none"),
        (
            without_head(checkpoint(SMALL, "Hugging Face, base model")),
            "the last layer classifier.1.weight, {path} has none",
        ),
        (without_head(checkpoint(SMALL)) | HEAD, "the last layer fc.weight, {path} has head.0.bias, head.0.weight"),
        (WRAPPED | HEAD, "the last layer backbone.fc.weight, {path} has head.0.bias, head.0.weight"),
    ],
    ids=["torchvision", "Hugging Face", "base model", "other head", "wrapped with another head"],
)
def test_a_network_without_its_last_layer_is_refused(tmp_path, tensors, message):
    path = saved(tensors, tmp_path)
    with pytest.raises(UsageError, match=re.escape(f"weights must have {message.format(path=path)}") + "$"):
        read_weights(path)


@pytest.mark.parametrize(
    ("others", "stems"),
    [
        (checkpoint(SMALL, "Hugging Face"), "conv1.weight, resnet.embedder.embedder.convolution.weight"),
        (
            {f"teacher.{key}": value for key, value in checkpoint(SMALL).items()},
            "conv1.weight, teacher.conv1.weight",
        ),
    ],
    ids=["namings", "teacher"],
)
def test_several_networks_in_one_file_are_refused(tmp_path, others, stems):
    path = saved(checkpoint(SMALL) | others, tmp_path)
    with pytest.raises(UsageError, match=re.escape(f"weights must be those of one network, {path} has {stems}")):
        read_weights(path)


def test_only_a_3x3_stem_is_noted(tmp_path):
    (note,) = read_weights(saved(checkpoint(SMALL), tmp_path)).notes
    assert note == "3×3 stem computed with stride 1 and without pooling: the weights don't state either"
    assert read_weights(saved(checkpoint(dataclasses.replace(SMALL, stem="imagenet")), tmp_path)).notes == ()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_integers_stand_for_value_times_the_scale_of_their_channel(tmp_path, dtype):
    tensors, rng = checkpoint(SMALL), np.random.default_rng(0)
    key, limits = "layer2.0.conv2.weight", np.iinfo(dtype)
    values = rng.integers(limits.min, limits.max + 1, tensors[key].shape).astype(dtype)
    scales = rng.uniform(1e-3, 1e-2, (8, 1, 1, 1)).astype(np.float32)
    path = saved(tensors | {key: values, f"{key}_scale": scales}, tmp_path)
    kernel = read_weights(path).variables["layer2.0.conv2.kernel"]
    expected = np.stack([channel.astype(np.float32) * scale for channel, scale in zip(values, scales, strict=True)])
    np.testing.assert_array_equal(kernel, expected.transpose(2, 3, 1, 0), strict=True)
    for shape in ((8,), (1,), (8, 8, 1, 1)):
        path = saved(tensors | {key: values, f"{key}_scale": np.ones(shape, np.float32)}, tmp_path)
        with pytest.raises(
            UsageError, match=re.escape(f"{key}_scale of {path} must have shape (8, 1, 1, 1), got {shape}")
        ):
            read_weights(path)


def test_integers_whose_scale_is_too_large_are_refused(tmp_path):
    key = "layer2.0.conv2.weight"
    tensors = checkpoint(SMALL) | {
        key: np.full((8, 8, 3, 3), 100, np.int8),
        f"{key}_scale": np.full((8, 1, 1, 1), 1e38, np.float32),
    }
    path = saved(tensors, tmp_path)
    with pytest.raises(UsageError, match=re.escape(f"{key} of {path} must be finite in float32, got inf among 576")):
        read_weights(path)


def npy(save) -> bytes:
    save(file := io.BytesIO(), np.ones(3, np.float32))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a safetensors or PyTorch file, got {path}, which starts with b''"),
        (b"not tensors at all", "must be a safetensors or PyTorch file, got {path}, which starts with b'not tens'"),
        (b"version https://git-lfs.github.com/spec/v1", "must be a file of tensors, got {path}, a Git LFS pointer"),
        (npy(np.savez), "must be a safetensors or PyTorch file, got {path}, a file of NumPy"),
        (npy(np.save), "must be a safetensors or PyTorch file, got {path}, a file of NumPy"),
        (None, "must be a readable safetensors file, got {path}: "),
    ],
    ids=["empty", "text", "pointer", "npz", "npy", "truncated"],
)
def test_a_file_of_another_format_is_refused(tmp_path, content, message):
    path = saved(checkpoint(SMALL), tmp_path)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UsageError, match=re.escape(f"weights {message.format(path=path)}")):
        read_weights(path)


def test_floats_that_numpy_lacks_are_refused(tmp_path):
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"8")
    with pytest.raises(UsageError, match=re.escape(f"safetensors file, got {path}: ") + ".*float8_e4m3fn"):
        read_weights(path)


def test_what_is_neither_a_file_nor_a_folder_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "is neither a file nor a folder"), (tmp_path / "absent", "doesn't exist")):
        with pytest.raises(UsageError, match=re.escape(f"got {path}, which {kind}")):
            read_weights(path)
    with pytest.raises(UsageError, match="weights must be a path that can be read, got x+: File name too long"):
        read_weights("x" * 300)
