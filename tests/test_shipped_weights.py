"""The weights that ship with Cambrian: what they hold, when `auto` takes them, and what they recognise."""

import dataclasses
import hashlib
import io
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import cambrian
from cambrian.commands import model as model_module
from cambrian.commands.config_file import read_config_file
from cambrian.commands.configuration import Configuration
from cambrian.commands.executables import weights_identity
from cambrian.commands.model import NO_WEIGHTS, read_model, weights_path
from cambrian.models.checkpoints.weights import read_weights
from cambrian.models.resnet.architecture import Architecture
from cambrian.sharding import MeshShape

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "weights" / "resnet101_cifar10"
SAMPLE = ROOT / "commands" / "images" / "cifar10_sample" / "cifar10_test_sample.zip"
MODEL = read_config_file("resnet101_cifar10").preset.model
DEFAULT = Configuration(model=MODEL, mesh=MeshShape(1, 1))


def test_the_folder_holds_the_network_of_the_default_configuration():
    weights = read_weights(FOLDER)
    assert weights.architecture == Architecture.resnet(101, "cifar", 10)
    assert (weights.description.preprocessing, weights.description.labels) == (MODEL.preprocessing, MODEL.labels)
    assert weights.notes == ()
    tensors = load_file(FOLDER / "model.safetensors")
    head, scales = tensors["classifier.1.weight"], tensors["classifier.1.weight_scale"]
    assert (head.dtype, scales.shape) == (np.int8, (10, 1))
    for number, scale in enumerate(scales[:, 0]):
        row = np.array([np.float32(value) * scale for value in head[number]])
        np.testing.assert_array_equal(weights.variables["fc.kernel"][:, number], row, strict=True)
    np.testing.assert_array_equal(weights.variables["fc.bias"], tensors["classifier.1.bias"], strict=True)


def test_the_model_card_names_the_file():
    data, card = (FOLDER / "model.safetensors").read_bytes(), (FOLDER / "README.md").read_text()
    assert hashlib.sha256(data).hexdigest() in card and f"{len(data):,} bytes" in card and len(data) <= 45e6


@pytest.mark.parametrize(
    "changes",
    [{"depth": 50}, {"stem": "imagenet"}, {"num_classes": 9, "labels": ()}, {"labels": tuple("abcdefghij")}],
    ids=str,
)
def test_auto_takes_random_weights_for_another_model(changes):
    configuration = dataclasses.replace(DEFAULT, model=dataclasses.replace(MODEL, **changes))
    assert weights_path(configuration) is None
    assert weights_identity(configuration) == "auto, seed 0"


def test_auto_takes_the_shipped_weights_and_random_stays_random():
    model = read_model(DEFAULT)
    assert (model.weights, model.trained, model.notes) == ("resnet101_cifar10, shipped with Cambrian", True, ())
    assert (model.config, model.architecture) == (MODEL, Architecture.resnet(101, "cifar", 10))
    assert cambrian.resnet().weights == model.weights
    random = cambrian.resnet("random", depth=18, seed=3)
    assert (random.weights, random.trained, random.notes) == ("random, seed 3", False, ())
    assert cambrian.resnet(depth=18).notes == (NO_WEIGHTS,)
    assert weights_path(dataclasses.replace(DEFAULT, weights="random")) is None


def test_the_artefact_key_follows_the_shipped_weights(tmp_path, monkeypatch):
    before = weights_identity(DEFAULT)
    copy = Path(shutil.copytree(FOLDER, tmp_path / "resnet101_cifar10"))
    monkeypatch.setattr(model_module, "_SHIPPED_FOLDER", copy)
    assert weights_identity(DEFAULT) == before
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(b"\x7f")
    assert weights_identity(DEFAULT) != before


def test_the_artefact_key_follows_what_is_read_of_a_file(tmp_path):
    def identity(name: str) -> str:
        return weights_identity(dataclasses.replace(DEFAULT, weights=str(tmp_path / name)))

    (tmp_path / "model.safetensors").write_bytes(b"tensors")
    (tmp_path / "renamed.safetensors").write_bytes(b"tensors")
    before = identity("model.safetensors")
    assert before == identity("model.safetensors") != identity("renamed.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert identity("model.safetensors") != before
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(cambrian.UsageError, match="weights must be a file or a folder, got the FIFO .*pipe"):
        identity("pipe")


@pytest.mark.slow
def test_100_real_pictures_are_recognised():
    with zipfile.ZipFile(SAMPLE) as archive:
        names = [name for name in sorted(archive.namelist()) if name.endswith(".jpg")][::10]
        images = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names])
    labels = [MODEL.labels.index(name.split("/")[-2]) for name in names]
    assert len(labels) == 100 and len(set(labels)) == 10
    executable = cambrian.compile(cambrian.resnet(), mesh="1x1", batch_size=50, precision="float32")
    assert np.mean(executable(images).argmax(axis=1) == labels) >= 0.75
