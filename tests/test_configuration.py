"""Configurations from flags, config files and reports: valid values, and precedence."""

import dataclasses
import json
import os
import re
import socket

import pytest

from cambrian.commands.config_file import read_config_file
from cambrian.commands.configuration import Configuration, Preset, batch_sizes, default_batch_size, parse_bytes
from cambrian.commands.flags import read_configuration
from cambrian.commands.sweep.command_lines import command_line
from cambrian.sharding import MeshShape, Preprocessing, UsageError
from cambrian.sharding.host import core_sharing
from command import TINY_CONFIG
from flag_values import parse

MODEL = read_config_file("resnet101_cifar10").preset.model


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


def test_every_path_may_begin_with_the_home_folder(tmp_path, monkeypatch, preset):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("data", "weights", "artifact", "artifact_dir", "signing_key", "output_dir", "calibration_data")
    found = parse("--config=~/preset.py", "--model=~/nets.py:net", *(f"--{name}=~/{name}" for name in names))
    assert {name: found[name] for name in names} == {name: str(tmp_path / name) for name in names}
    assert (found["config"], found["model"]) == (preset, str(tmp_path / "nets.py:net"))
    assert parse("--config", write_report(tmp_path, weights="~/given"))["weights"] == str(tmp_path / "given")
    assert parse("--weights", "auto")["weights"] == "auto"


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


def test_a_report_repeats_a_run_from_any_folder(preset, tmp_path, monkeypatch):
    (tmp_path / "here" / "weights").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    paths = ("--data", "images", "--weights", "weights", "--artifact_dir", "cache", "--config", os.path.relpath(preset))
    report = write_report(tmp_path, **parse(*paths, "--mesh", "1x2").reported)
    monkeypatch.chdir(tmp_path / "there")
    again = parse("--config", report)
    for name in ("data", "weights"):
        assert again[name] == str(tmp_path / "here" / name.replace("data", "images"))
    assert (again["config"], again["artifact_dir"]) == (preset, str(tmp_path / "here" / "cache"))
    assert read_configuration(again).mesh == MeshShape(1, 2)


def test_a_report_leaves_what_is_no_path_as_it_was():
    words = {"data": "s3://bucket/pictures", "config": "resnet101_cifar10", "model": "nets:network", "weights": "large"}
    reported = parse(*(f"--{name}={value}" for name, value in words.items())).reported
    assert {name: reported[name] for name in words} == words
    assert (reported["calibration_data"], reported["artifact"], reported["signing_key"]) == ("auto", "", "")
    assert parse("--model", "nets.py:network").reported["model"] == os.path.abspath("nets.py") + ":network"


def test_a_report_of_a_test_of_loadgen_keeps_its_mesh(tmp_path):
    report = write_report(tmp_path, mode="loadgen", mesh="4x8")
    assert read_configuration(parse("--config", report)).mesh == MeshShape(4, 8)
    swept = parse("--config", report, "--threads", "1,2")
    command = command_line(swept, {"config": None, "threads": 1})
    assert read_configuration(parse(*command)).mesh == MeshShape(4, 8)


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
    [
        ("CONFIG = 3", "{path} must define CONFIG, a Preset, got int"),
        ("", "{path} must define CONFIG, a Preset, got NoneType"),
        ("CONFIG = = 3", "config {path} must run without an error, got SyntaxError: invalid syntax"),
        ("CONFIG = '\0'", "config {path} must run without an error, got "),
        ("CONFIG = 1 / 0", "config {path} must run without an error, got ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(0)", "config {path} must run without an error, got SystemExit: 0"),
        ("raise BaseException", "config {path} must run without an error, got BaseException: "),
        ("CONFIG = " + "[" * 10_000 + "]" * 10_000, "config {path} must run without an error, got "),
    ],
)
def test_a_file_that_defines_no_preset_is_refused(tmp_path, content, message):
    path = tmp_path / "preset.py"
    path.write_text(content)
    with pytest.raises(UsageError, match=re.escape(message.format(path=path))):
        read_config_file(str(path))


def test_a_file_with_a_value_out_of_range_is_refused_by_name(tmp_path):
    path = tmp_path / "preset.py"
    path.write_text(TINY_CONFIG.replace("depth=18", "depth='18'"))
    message = f"config {path} must run without an error, got depth must be of type int, got '18'"
    with pytest.raises(UsageError, match=re.escape(message)):
        read_config_file(str(path))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([("threads", "2")], "flags must be of type tuple, got [('threads', '2')]"),
        ((("threads", 2),), "flags must be pairs of strings, (flag, value), got ('threads', 2)"),
        (("ab",), "flags must be pairs of strings, (flag, value), got 'ab'"),
    ],
)
def test_a_preset_checks_its_flags(flags, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        Preset(MODEL, flags)


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "3", "{}", '{"flags": 3}', '{"flags": [1]}', "[" * 10_000, '{"flags": {"threads": ' + "[" * 10_000,
        "9" * 5000, "\xff",
    ],
)  # fmt: skip
def test_a_report_without_flags_is_refused(tmp_path, content):
    (tmp_path / "report.json").write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match="config must be a report.json with flags, got .*report.json: "):
        parse("--config", tmp_path / "report.json")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("threads", True), ("threads", 2.5), ("threads", {}), ("threads", [[2]]), ("threads", None), ("mesh", 4),
        ("data", []), ("skip_bad_images", "maybe"), ("skip_bad_images", []), ("timeout_s", 10**400), ("config", 3),
        ("config", ["resnet101_cifar10"]), ("search", ["grid"]),
    ],
)  # fmt: skip
def test_a_flag_of_another_type_in_a_report_is_refused(tmp_path, flag, value):
    with pytest.raises(UsageError, match=f"report.json: {flag} must be .*, got "):
        parse("--config", write_report(tmp_path, **{flag: value}))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("repeats", 0), ("repeats", 10**6), ("max_latency_ms", "nan"), ("max_latency_ms", "inf"), ("min_top1", 1.1),
        ("min_top1", "nan"), ("timeout_s", 0.5), ("timeout_s", 1e300),
    ],
)  # fmt: skip
def test_every_number_of_a_sweep_has_a_range(flag, value):
    with pytest.raises(UsageError, match=f"^{flag} must be from .* to .*, got "):
        parse("--threads", "1,2", f"--{flag}", value)


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
@pytest.mark.parametrize("name", ["data", "weights", "artifact", "artifact_dir", "signing_key", "output_dir"])
def test_a_path_that_is_neither_file_nor_folder_is_refused(tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = "/dev/zero" if kind == "device" else kind
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
    with pytest.raises(UsageError, match=f"{name} must be a file or a folder, got the {kind} {path}"):
        Configuration(**{"model": MODEL, "mesh": MeshShape(1, 1), name: path})


@pytest.mark.parametrize("suffix", [".py", ".json"])
def test_a_fifo_as_config_is_refused(tmp_path, suffix):
    os.mkfifo(path := tmp_path / f"fifo{suffix}")
    with pytest.raises(UsageError, match=f"config must be a file or a folder, got the FIFO {path}"):
        parse("--config", path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int4"}, "precision must be one of auto, float32, bfloat16, int8, got 'int4'"),
        ({"execution": "later"}, "execution must be one of offline, online, got 'later'"),
        ({"threads": 0}, "threads must be from 1 to 1024, got 0"),
        ({"threads": 10**6}, "threads must be from 1 to 1024, got 1000000"),
        ({"batch_size": -8}, "batch_size must be from 0 to 1048576, got -8"),
        ({"num_images": 10**12}, "num_images must be from 0 to 1000000000, got 1000000000000"),
        ({"calibrate_s": float("nan")}, "calibrate_s must be from 0 to 3600, got nan"),
        ({"mesh": MeshShape(10**6, 1)}, "mesh must have at most 65536 devices, got 1000000x1"),
        ({"device_memory_limit": "1" + "0" * 30 + "B"}, "device_memory_limit must be at most 1024TiB, got '1"),
        ({"device_memory_limit": "9" * 400 + "B"}, "device_memory_limit must be at most 1024TiB, got '9"),
        ({"weights": "a" * 300}, "weights must be a path that can be read, got 'aaa"),
        ({"data": "a\0"}, "data must be a path that can be read, got 'a"),
        ({"batch_size": 12}, "batch_size must be a multiple of the data axis of 8 in mesh 4x8, got 12"),
        ({"output_dir": "s3://out"}, "output_dir must be a folder of this machine, got s3://out"),
        ({"image_size": -1}, "image_size must be from 0 to 8192, got -1"),
        ({"seed": -1}, "seed must be from 0 to 4294967295, got -1"),
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
        ({"num_classes": 3}, "labels must name all 3 classes, got 10"),
        ({"num_classes": 0}, "num_classes must be from 1 to 1000000, got 0"),
        ({"num_classes": True}, "num_classes must be of type int, got True"),
        ({"depth": 18.0}, "depth must be of type int, got 18.0"),
        ({"stem": None}, "stem must be of type str, got None"),
        ({"labels": list("abcdefghij")}, "labels must be of type tuple, got ['a', "),
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
    sizes = batch_sizes(mesh, platform)
    assert sizes[-1] == batch_size and all(size % mesh.num_devices == 0 for size in sizes)


def test_the_batch_sizes_to_choose_from():
    assert batch_sizes(MeshShape(1, 1), "cpu") == [8, 16, 32, 64]
    assert batch_sizes(MeshShape(4, 8), "cpu") == [32, 64, 128, 256]
    assert batch_sizes(MeshShape(3, 2), "cpu") == [12, 24, 48, 66]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("17 B", 17),
        ("1KiB", 1024),
        ("1.5MiB", 3 * 2**19),
        (" 512MiB ", 2**29),
        ("1TiB", 2**40),
        ("2GB", 2 * 10**9),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "512", "MiB", "512Mb", "512mib", "-1MiB", "1e3MiB", "1,5MiB", "1 M iB", "1iB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match=re.escape(f"such as 512MiB, got {text!r}")):
        parse_bytes(text)


@pytest.mark.parametrize("user_model", ["", "nets.py:network"])
def test_launches_in_a_narrow_precision_compute_at_once_on_one_cpu_device(monkeypatch, user_model):
    monkeypatch.setattr(core_sharing, "host_cores", lambda: 8)
    monkeypatch.setattr(core_sharing, "computes_bfloat16", lambda _: True)
    base = Configuration(model=MODEL, mesh=MeshShape(1, 1), threads=3, user_model=user_model)

    def at_once(**changed):
        return dataclasses.replace(base, **changed).launches_at_once

    assert (at_once(precision="bfloat16"), at_once(precision="int8"), at_once(precision="float32")) == (3, 3, 1)
    assert at_once(precision="auto") == (1 if user_model else 3)  # a user's model has a precision of its own
    assert at_once(precision="bfloat16", mesh=MeshShape(1, 2)) == 1
    assert at_once(precision="bfloat16", platform="gpu") == 1


def test_a_report_may_hold_flags_that_another_mode_would_ignore(tmp_path):
    report = write_report(tmp_path, num_images=32, skip_bad_images=True)
    assert read_configuration(parse("--config", report, "--mode", "plan")).mesh == MeshShape(4, 8)
    report = write_report(tmp_path, mode="train", mesh="1x1", freeze="backbone")
    assert read_configuration(parse("--config", report, "--mode", "run")).mesh == MeshShape(1, 1)
