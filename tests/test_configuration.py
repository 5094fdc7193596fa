"""Flags, presets and reports as configurations: what they may hold, and which wins."""

import dataclasses
import json
import re

import pytest

from cambrian.commands.config_file import read_config_file
from cambrian.commands.configuration import Configuration, ModelConfig, default_batch_size, parse_bytes
from cambrian.commands.flags import read_configuration
from cambrian.sharding import MeshShape, Preprocessing, UsageError
from command import TINY_CONFIG
from flag_values import parse

MODEL = ModelConfig(50, "imagenet", 2, Preprocessing((64, 64), (73, 73)), ("cat", "dog"))


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "preset.py"
    model, end = TINY_CONFIG.rstrip().removesuffix(")"), ', flags=(("threads", "5"), ("mesh", "2x4")),\n)'
    path.write_text(model.rstrip() + end)
    return str(path)


def write_report(folder, **reported):
    path = folder / "report.json"
    path.write_text(json.dumps({"flags": reported}))
    return str(path)


def test_defaults():
    configuration = read_configuration(parse())
    model = read_config_file("resnet101_cifar10").preset.model
    assert configuration == Configuration(model=model, mesh=MeshShape(4, 8))
    assert (configuration.threads, configuration.execution, configuration.weights) == (2, "offline", "auto")
    assert hash(configuration) == hash(dataclasses.replace(configuration))


def test_a_training_takes_one_device_unless_asked_for_others(preset):
    def mesh(*flags: str) -> MeshShape:
        return read_configuration(parse("--mode", "train", *flags)).mesh

    assert mesh() == MeshShape(1, 1)
    assert mesh("--mesh", "1x4") == MeshShape(1, 4)
    assert mesh("--mesh", "4x8") == MeshShape(4, 8)  # which the training refuses
    assert mesh("--config", preset) == MeshShape(2, 4)


def test_the_command_line_wins_over_the_preset_and_that_over_defaults(preset):
    values = parse("--config", preset, "--mesh", "1x2")
    configuration = read_configuration(values)
    assert (configuration.mesh, configuration.threads, configuration.seed) == (MeshShape(1, 2), 5, 0)
    assert (configuration.model.depth, configuration.explicit_config) == (18, True)
    assert (values["config"], values["mesh"], values["threads"]) == (preset, "1x2", 5)


def test_a_report_gives_its_flags_but_no_output_folder(preset, tmp_path):
    first = parse("--config", preset, "--threads", "3", "--skip_bad_images", "--seed", "7", "--output_dir", "there")
    configuration = read_configuration(first)
    report = write_report(tmp_path, **first.values)
    again = read_configuration(parse("--config", report, "--seed", "8"))
    assert again == dataclasses.replace(configuration, seed=8, output_dir="")
    assert again.skip_bad_images and again.threads == 3


def test_an_artifact_in_a_report_decides_as_one_on_the_command_line(tmp_path):
    report = write_report(tmp_path, config="", artifact="received", mesh="4x8")
    assert read_configuration(parse("--config", report)).artifact == "received"
    with pytest.raises(UsageError, match="an artifact decides its own mesh: leave --mesh out, got '1x2'"):
        read_configuration(parse("--config", report, "--mesh", "1x2"))


@pytest.mark.parametrize("name", ["resnet101_cifar10", "resnet101_imagenet"])
def test_named_presets(name):
    model = read_config_file(name).preset.model
    assert name == f"resnet{model.depth}_{'cifar10' if model.num_classes == 10 else 'imagenet'}"


@pytest.mark.parametrize(
    ("content", "message"),
    [("CONFIG = 3", "must define CONFIG, a Preset, got int"), ("", "must define CONFIG, a Preset, got NoneType")],
)
def test_a_file_without_a_preset_is_refused(tmp_path, content, message):
    path = tmp_path / "preset.py"
    path.write_text(content)
    with pytest.raises(UsageError, match=re.escape(f"{path} {message}")):
        read_config_file(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int8"}, "precision must be one of auto, float32, bfloat16, got 'int8'"),
        ({"execution": "later"}, "execution must be one of offline, online, got 'later'"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"batch_size": -8}, "batch_size must be at least 0, got -8"),
        ({"batch_size": 12}, "batch_size must be a multiple of the data axis of 8 in mesh 4x8, got 12"),
        ({"image_size": -1}, "image_size must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"device_memory_limit": "lots"}, "such as 512MiB, got 'lots'"),
        ({"resize": 232}, "resize belongs to --weights PATH without --config, got 232"),
        ({"artifact": "received", "execution": "online"}, "execution must be offline to run an artifact, got online"),
    ],
)
def test_a_configuration_checks_its_values(changes, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        Configuration(**{"model": MODEL, "mesh": MeshShape(4, 8)} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 3}, "labels must name all 3 classes, got 2"),
        ({"preprocessing": 224}, "preprocessing must be of type Preprocessing, got 224"),
        ({"preprocessing": Preprocessing((9000, 64), (73, 73))}, "image_size must be from 1 to 8192, got 9000"),
    ],
)
def test_a_model_checks_its_values(changes, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        dataclasses.replace(MODEL, **changes)


@pytest.mark.parametrize(
    ("mesh", "platform", "batch_size"),
    [
        (MeshShape(1, 1), "cpu", 64),
        (MeshShape(1, 2), "cpu", 64),
        (MeshShape(3, 2), "cpu", 66),
        (MeshShape(4, 8), "cpu", 256),
        (MeshShape(1, 1), "gpu", 256),
        (MeshShape(2, 4), "tpu", 2048),
    ],
)
def test_the_batch_size_that_is_chosen(mesh, platform, batch_size):
    assert default_batch_size(mesh, platform) == batch_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("0B", 0), ("17 B", 17), ("1KiB", 1024), ("1.5MiB", 3 * 2**19), (" 512MiB ", 2**29), ("1TiB", 2**40)],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "512", "MiB", "512MB", "512mib", "-1MiB", "1e3MiB", "1,5MiB", "1 M iB", "1iB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match=re.escape(f"such as 512MiB, got {text!r}")):
        parse_bytes(text)
