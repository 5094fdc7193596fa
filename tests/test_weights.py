import re
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from cambrian.models.checkpoints.naming import NAMINGS, hugging_face_name, torchvision_name
from cambrian.models.checkpoints.weights import read_weights
from cambrian.models.resnet.architecture import DEPTHS, Architecture
from cambrian.models.resnet.variables import random_variables
from cambrian.sharding import UsageError

SMALL = Architecture("cifar", (1, 2), True, 5, width=4)


def checkpoint(architecture: Architecture, naming: str = "torchvision") -> dict[str, np.ndarray]:
    to_torch = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    tensors = {}
    for variable, value in random_variables(architecture).items():
        key = NAMINGS[naming](variable)
        tensors[key] = np.ascontiguousarray(value.transpose(to_torch[value.ndim]))
        if key.endswith("running_var"):
            tensors[key.replace("running_var", "num_batches_tracked")] = np.array(1, np.int64)
    return tensors


def saved(tensors: dict[str, np.ndarray], folder: Path) -> Path:
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return path


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
        ("fc.weight", np.ones((5, 31), np.float32), "fc.weight of {path} needs shape (5, 32), got (5, 31)"),
        ("fc.weight", np.ones(5, np.float32), "fc.weight of {path} needs shape (classes, channels), got (5,)"),
        ("conv1.weight", np.ones((4, 3, 5, 5), np.float32), "conv1.weight of {path} needs a kernel of 7×7 or 3×3"),
        ("conv1.weight", np.ones((4, 1, 3, 3), np.float32), "conv1.weight of {path} needs shape (4, 3, 3, 3)"),
        (
            "layer1.0.conv2.weight",
            np.ones((8, 4, 3, 3), np.float32),
            "layer1.0.conv2.weight of {path} needs shape (4, 4, 3, 3), got (8, 4, 3, 3)",
        ),
        ("fc.bias", np.ones(5, np.int8), "fc.bias of {path} needs floating-point numbers"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, key, value, message):
    path = saved(checkpoint(SMALL) | {key: value}, tmp_path)
    with pytest.raises(UsageError, match=re.escape(message.format(path=path))):
        read_weights(path)


@pytest.mark.parametrize(
    "key", ["layer1.0.se.fc1.weight", "layer2.3.conv1.weight", "conv1.bias", "fc.num_batches_tracked"]
)
def test_a_tensor_left_over_is_named(tmp_path, key):
    path = saved(checkpoint(SMALL) | {key: np.ones(4, np.float32)}, tmp_path)
    with pytest.raises(UsageError, match=re.escape(f"{path} also has {key}")):
        read_weights(path)


@pytest.mark.parametrize(
    ("tensors", "got"),
    [
        ({f"module.{key}": value for key, value in checkpoint(SMALL).items()}, "keys such as module.bn1.bias"),
        ({}, "no tensors"),
        (checkpoint(SMALL) | checkpoint(SMALL, "Hugging Face"), "keys such as bn1.bias"),
    ],
    ids=["prefixed", "empty", "both"],
)
def test_an_unknown_naming_is_refused(tmp_path, tensors, got):
    path = saved(tensors, tmp_path)
    with pytest.raises(UsageError, match=re.escape(f"{path} has {got}")):
        read_weights(path)


@pytest.mark.parametrize("content", [b"", b"not tensors at all", None], ids=["empty", "text", "truncated"])
def test_a_file_that_is_no_safetensors_file_is_refused(tmp_path, content):
    path = saved(checkpoint(SMALL), tmp_path)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UsageError, match=re.escape(f"safetensors file, got {path}: ")):
        read_weights(path)


def test_a_missing_file_is_refused(tmp_path):
    path = tmp_path / "missing.safetensors"
    with pytest.raises(UsageError, match=re.escape(f"{path}, which is no file")):
        read_weights(path)


def torch_file(state: object, folder: Path, name: str = "model.pth") -> Path:
    torch = pytest.importorskip("torch", reason="the extra torch is not installed")
    tensors = state
    if isinstance(state, dict):
        tensors = {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in state.items()}
    torch.save(tensors, folder / name)
    return folder / name


def test_a_state_dict_of_pytorch_gives_the_same(tmp_path):
    weights = read_weights(torch_file(checkpoint(SMALL), tmp_path))
    assert weights.architecture == SMALL
    for name, value in random_variables(SMALL).items():
        np.testing.assert_array_equal(weights.variables[name], value, strict=True)


def test_bfloat16_of_pytorch_becomes_float32(tmp_path):
    torch = pytest.importorskip("torch", reason="the extra torch is not installed")
    state = {key: torch.tensor(value) for key, value in checkpoint(SMALL).items()}
    state["fc.bias"] = state["fc.bias"].bfloat16()
    torch.save(state, tmp_path / "model.pt")
    bias = read_weights(tmp_path / "model.pt").variables["fc.bias"]
    np.testing.assert_array_equal(
        bias, random_variables(SMALL)["fc.bias"].astype(ml_dtypes.bfloat16).astype(np.float32)
    )


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = torch_file(checkpoint(SMALL) | {"harm": Harmful()}, tmp_path)
    with pytest.raises(
        UsageError, match=re.escape(f"weights need to be tensors only, in a file of PyTorch, got {path}")
    ):
        read_weights(path)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("state", "got"),
    [({"epoch": 3, "model": {}}, "a dict with epoch, model"), ([1, 2], "list")],
    ids=["training state", "list"],
)
def test_what_is_no_state_dict_is_refused(tmp_path, state, got):
    path = torch_file(state, tmp_path)
    with pytest.raises(
        UsageError, match=re.escape(f"weights need to be a state dict (name → tensor), {path} holds {got}")
    ):
        read_weights(path)


def test_without_pytorch_its_files_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "model.pth").touch()
    with pytest.raises(UsageError, match=re.escape("needs the extra torch (pip install 'cambrian[torch]'), got")):
        read_weights(tmp_path / "model.pth")
