"""`--precision int8` by the command."""

import pytest

from cambrian import models
from cambrian.models.lowerings import onednn_forms
from cambrian.models.lowerings.onednn_forms import int8_obstacle
from command import LABELS, CommandHere, write_images


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> CommandHere:
    return CommandHere(tmp_path_factory.mktemp("int8"))


@pytest.mark.slow
@pytest.mark.skipif(int8_obstacle("cpu") is not None, reason=str(int8_obstacle("cpu")))
def test_a_run_is_calibrated_on_the_training_split_and_says_so(command):
    names = [f"{label}/{number}.png" for label in LABELS for number in range(2)]
    for seed, split in enumerate(("train", "test")):
        write_images(command.home / "pictures" / split, names, seed)
    flags = (*command.small_flags()[:-2], "--precision", "int8", "--mesh", "2x2", "--batch_size", 8)
    report = command.run(*flags, "--data", command.home / "pictures", "--max_top1_drop", 100).report
    facts = report["quantization"]
    assert facts["calibrated_on"] == f"folder {command.home}/pictures/train" and facts["num_images"] == 20
    assert report["precision"] == "int8" and report["parity_max_relative_error"] < 1e-2
    precisions = {name: layer["precision"] for name, layer in report["plan"].items()}
    assert precisions["conv1"] == precisions["layer1.0.conv2"] == "int8" and precisions["fc"] == "float32"
    assert set(facts["scales"]) == {name for name, precision in precisions.items() if precision == "int8"}


@pytest.mark.parametrize(
    "flags, error",
    [
        (("--calibration_data", "pictures"), "--calibration_data belongs to precision int8, got auto"),
        (
            ("--precision", "int8", "--calibration_data", "nowhere", "--mesh", "1x1"),
            "calibration_data: data must be auto, cifar10, cifar10_sample, synthetic or a folder of images, got "
            "'nowhere': No such file or directory",
        ),
        (("--precision", "int8", "--max_top1_drop", "101"), "max_top1_drop must be from 0 to 100, got 101.0"),
        (("--precision", "int8", "--mode", "train"), "mode train trains in float32 or bfloat16, got precision int8"),
    ],
)
def test_flags_that_make_no_sense_are_refused(command, flags, error):
    outcome = command(*flags)
    assert (outcome.exit_code, outcome.error) == (2, error)


def test_few_and_unreadable_calibration_images_are_refused(command):
    write_images(command.home / "few", [f"{number}.png" for number in range(15)])
    flags = (*command.small_flags()[:-2], "--precision", "int8", "--data", "synthetic", "--calibration_data")
    outcome = command(*flags, command.home / "few")
    expected = f"int8 needs at least 16 calibration inputs, got 15: folder {command.home}/few"
    assert (outcome.exit_code, outcome.error) == (2, expected)
    (command.home / "few" / "bad.png").write_bytes(b"no picture")
    outcome = command(*flags, command.home / "few")
    assert outcome.exit_code == 2 and "few/bad.png: not a JPEG or PNG file" in outcome.error


def test_nothing_is_tuned_where_int8_cannot_be_computed(command, monkeypatch):
    monkeypatch.setattr(onednn_forms, "int8_obstacle", lambda platform: f"{platform} is too old")
    monkeypatch.setattr(models, "tune", lambda *_, **__: pytest.fail("measured"))
    outcome = command("--mode", "plan", "--tune", *command.small_flags()[:-2], "--precision", "int8", "--mesh", "1x1")
    expected = "precision int8 requires products of 8-bit integers by oneDNN: cpu is too old"
    assert (outcome.exit_code, outcome.error) == (2, expected)
