"""Weights in files of PyTorch: found by content, loaded with weights only."""

import argparse
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cambrian.models.checkpoints.weights import read_weights
from cambrian.models.resnet.variables import random_variables
from cambrian.sharding import UsageError
from checkpoint_tensors import SMALL, checkpoint, saved


def torch_file(state: Any, folder: Path, name: str = "model.pth", **options: Any) -> Path:
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def converted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: converted(inner) for key, inner in value.items()}
        return torch.tensor(value) if isinstance(value, np.ndarray) else value

    torch.save(converted(state), folder / name, **options)
    return folder / name


@pytest.mark.parametrize(
    "name", ["model.pth", "model.pth.tar", "model.ckpt", "model.bin", "model.safetensors", "model"]
)
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "pickle"])
def test_a_state_dict_of_pytorch_gives_the_same_whatever_its_file_is_called(tmp_path, name, options):
    weights = read_weights(torch_file(checkpoint(SMALL), tmp_path, name, **options))
    assert weights.architecture == SMALL
    for variable, value in random_variables(SMALL).items():
        np.testing.assert_array_equal(weights.variables[variable], value, strict=True)


def test_safetensors_are_read_whatever_their_file_is_called(tmp_path):
    path = saved(checkpoint(SMALL), tmp_path).rename(tmp_path / "model.pth")
    assert read_weights(path).architecture == SMALL


OPTIMIZER = {"state": {0: {"momentum_buffer": np.ones(3, np.float32)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "ema", "net"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_is_found_inside_a_checkpoint_of_training(tmp_path, key, prefix):
    tensors = {prefix + name: value for name, value in checkpoint(SMALL).items()}
    state = {"epoch": 3, "args": argparse.Namespace(lr=0.1), key: tensors, "optimizer": OPTIMIZER}
    path = torch_file(state, tmp_path)
    weights = read_weights(path)
    assert weights.notes[:2] == (
        f"not read in {path}: epoch, args, optimizer",
        f"prefix {key}.{prefix} stripped from tensor names in {path}",
    )
    for name, value in random_variables(SMALL).items():
        np.testing.assert_array_equal(weights.variables[name], value, strict=True)


def test_a_key_that_begins_as_the_state_dict_s_is_noted_as_not_read(tmp_path):
    path = torch_file({"model": "resnet", "model_state_dict": checkpoint(SMALL)}, tmp_path)
    assert read_weights(path).notes[0] == f"not read in {path}: model"


def test_two_state_dicts_of_networks_are_refused(tmp_path):
    path = torch_file({"state_dict": checkpoint(SMALL), "state_dict_ema": checkpoint(SMALL)}, tmp_path)
    stems = "state_dict.conv1.weight, state_dict_ema.conv1.weight"
    with pytest.raises(UsageError, match=re.escape(f"weights must be those of one network, {path} has {stems}")):
        read_weights(path)


@pytest.mark.parametrize("kind", ["bfloat16", "half", "double", "parameter", "sparse", "quantized"])
def test_tensors_of_pytorch_become_float32(tmp_path, kind):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    value = torch.tensor(checkpoint(SMALL)["fc.weight"])
    if kind == "parameter":
        stored = torch.nn.Parameter(value)
    elif kind == "sparse":
        stored = value.to_sparse()
    elif kind == "quantized":
        with warnings.catch_warnings(action="ignore"):  # PyTorch deprecates it
            stored = torch.quantize_per_tensor(value, 0.01, 3, torch.qint8)
        value = stored.dequantize()
    else:
        stored = getattr(value, kind)()
        value = stored.float()
    kernel = read_weights(torch_file(checkpoint(SMALL) | {"fc.weight": stored}, tmp_path)).variables["fc.kernel"]
    np.testing.assert_array_equal(kernel, value.numpy().T, strict=True)


def test_a_tensor_without_values_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    path = torch_file(checkpoint(SMALL) | {"fc.bias": torch.ones(5, device="meta")}, tmp_path)
    with pytest.raises(UsageError, match=re.escape(f"fc.bias of {path} must be a tensor with values")):
        read_weights(path)


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = torch_file(checkpoint(SMALL) | {"harm": Harmful()}, tmp_path)
    with pytest.raises(UsageError, match=re.escape(f"{path}, which its weights_only reader refuses: it holds ")):
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
        UsageError, match=re.escape(f"weights must be a state dict (name → tensor), {path} holds {got}")
    ):
        read_weights(path)


def test_without_pytorch_its_files_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(
        UsageError, match=re.escape("PyTorch files need the extra torch (pip install 'cambrian[torch]')")
    ):
        read_weights(tmp_path / "model.pth")
