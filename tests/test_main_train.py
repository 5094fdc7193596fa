"""`--mode train` as a user runs it: from small given weights on a folder of images, then the trained weights."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from cambrian import models
from cambrian.commands.config_file import read_config_file
from cambrian.commands.configuration import Configuration, ModelConfig
from cambrian.commands.flags import read_configuration
from cambrian.commands.train import train
from cambrian.commands.train.curves import draw_curves
from cambrian.commands.train.setup import open_images, set_up
from cambrian.models.checkpoints.description import Description
from cambrian.models.training.recipe import Recipe
from cambrian.sharding import MeshShape, Preprocessing, UsageError
from command import Command, CommandHere, write_checkpoint, write_images
from flag_values import parse


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The command, the flags of a training, and what it said."""
    command = Command(tmp_path_factory.mktemp("home"))
    command.small_flags()
    names = [f"{split}/{label}/{index}.png" for split in ("train", "test") for label in "ab" for index in range(10)]
    write_images(command.home / "images", names)
    flags = ("--mode", "train", "--weights", "small.safetensors", "--data", "images", "--mesh", "1x2")
    flags += ("--image_size", 8, "--batch_size", 10)
    flags += ("--precision", "float32", "--output_dir", "trained")
    outcome = command(*flags)
    assert outcome.exit_code == 0, outcome.stderr
    return command, flags, outcome


@pytest.mark.slow
def test_a_training_writes_report_curves_accuracy_and_weights(trained):
    command, _, outcome = trained
    output_dir = command.home / "trained"
    assert outcome.notes == [
        "no RECIPE in resnet101_cifar10.py: training by the default one, 30 epochs",
        "3×3 stem computed with stride 1 and without pooling: the weights don't state either",
        "the weights don't state their preprocessing: images become 8×8 pixels, normalised as those of CIFAR-10",
        "the head starts anew, for the 2 classes of the data: a, b",
    ]
    report = json.loads((output_dir / "report.json").read_text())
    assert (report["status"], report["model"], report["mesh"], report["num_images"]) == ("ok", "resnet6", "1x2", 20)
    assert report["host_changes"]["virtual_devices"] == "jax_num_cpu_devices = 2"
    assert (report["num_steps"], report["recipe"]["epochs"], report["batch_size"]) == (60, 30, 10)
    for precision in ("float32", "bfloat16"):
        accuracy = report["accuracy"][precision]
        low, high = accuracy["top1_interval_95"]
        assert 0 <= low <= accuracy["top1"] <= high <= 1 and accuracy["num_images"] == 20
        assert [entry["label"] for entry in accuracy["classes"]] == ["a", "b"]
        assert f"{precision}: top-1 {accuracy['top1']:.2%} (95% interval" in outcome.stdout
        assert (output_dir / f"classes_{precision}.csv").is_file()
    with (output_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [(str(epoch), str(2 * epoch)) for epoch in range(1, 31)]
    assert float(rows[-1]["test_top1"]) == report["accuracy"]["float32"]["top1"]
    for name in ("curves.png", "confusion_float32.png", "confusion_bfloat16.png"):
        with Image.open(output_dir / name) as picture:
            assert min(picture.size) > 400


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["model", "checkpoints"])
def test_the_trained_weights_run_to_the_same_accuracy(trained, weights):
    command, *_ = trained
    run = CommandHere(command.home).run(
        "--weights", command.home / "trained" / weights, "--data", "images", "--mesh", "1x2", "--precision", "float32"
    )  # fmt: skip
    expected = json.loads((command.home / "trained" / "report.json").read_text())["accuracy"]["float32"]
    assert (run.report["top1"], run.report["top5"]) == (expected["top1"], expected["top5"])
    assert {row["predicted"] for row in run.predictions} <= {"a", "b"}
    assert run.report["model"] == "resnet6"


@pytest.mark.slow
def test_a_finished_training_says_that_nothing_is_trained_again(trained):
    command, flags, outcome = trained
    again = command(*flags)
    lines = [line for line in outcome.stdout.splitlines() if not line.startswith("epoch ")]
    assert (again.exit_code, again.stdout.splitlines()) == (0, lines)
    note = "the training in trained was finished: nothing was trained; another --output_dir starts a new one"
    assert note in again.notes
    report = json.loads((command.home / "trained" / "report.json").read_text())
    assert report["status"] == "ok" and report["notes"] == again.notes and report["accuracy"]


def test_a_repeat_that_fails_leaves_the_results_of_the_checkpoints_alone(tmp_path):
    command = CommandHere(tmp_path)
    write_images(tmp_path / "images", [f"{split}/{label}/0.png" for split in ("train", "test") for label in "ab"])
    flags = ("--mode", "train", *command.small_flags(), "--data", "images", "--mesh", "1x1", "--batch_size", 2)
    flags += ("--device_memory_limit", "1KiB", "--output_dir", "out")
    earlier = {tmp_path / "out" / name for name in ("metrics.csv", "model/model.safetensors", "predictions.csv")}

    def left() -> set[str]:
        for path in (*earlier, tmp_path / "out" / "report.json"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"flags": {}, "status": "ok"}')
        assert command(*flags).error.startswith("OutOfMemory: a device must hold all images")
        return {path.name for path in earlier if path.exists()}

    assert left() == set()
    (tmp_path / "out" / "checkpoints" / "5").mkdir(parents=True)
    assert left() == {"metrics.csv", "model.safetensors"}


def test_a_step_is_computed_by_all_cores_however_many_threads_read_images(monkeypatch):
    asked = []

    def acquire(*arguments, **options):
        asked.append((arguments, options))
        raise UsageError("no devices")

    monkeypatch.setattr(train, "acquire_devices", acquire)
    flags = parse("--mode", "train", "--threads", "8", "--precision", "bfloat16")
    with pytest.raises(UsageError, match="no devices"):
        train.train_command(read_configuration(flags), flags)
    assert asked == [((1, "auto"), {})]


@pytest.mark.parametrize(
    ("labels", "num_classes", "order"),
    [
        (("ant", "bee", "cow"), 3, [0, 1, 2]),
        (("Cow", "bee", "ant"), 3, [2, 1, 0]),
        ((), 3, [0, 1, 2]),
        (("ant", "bee", "dog"), 3, None),
        (("ant", "bee"), 2, None),
        (("ant", "bee", "cow", "dog"), 4, None),
        ((), 4, None),
    ],
)
def test_with_a_configuration_the_head_of_weights_is_kept_only_for_their_own_classes(
    tmp_path, monkeypatch, labels, num_classes, order
):
    names = ("ant", "bee", "cow")
    write_images(tmp_path, [f"{split}/{name}/0.png" for split in ("train", "test") for name in names])
    architecture = models.Architecture.resnet(18, "cifar", num_classes)
    head = {"fc.kernel": np.ones((512, 1), np.float32) * range(num_classes), "fc.bias": np.arange(num_classes)}
    weights = models.Weights(architecture, head, Description(labels=labels))
    monkeypatch.setattr(models, "read_weights", lambda path: weights)
    model = ModelConfig(18, "cifar", 3, Preprocessing((8, 8), (8, 8)), names)
    configuration = Configuration(model, MeshShape(1, 1), explicit_config=True, data=str(tmp_path), weights="given")
    _, _, setup, notes = open_images(configuration, Recipe(), set_up(configuration, Recipe()))
    assert (setup.architecture.num_classes, setup.model.labels) == (3, names)
    if order is None:
        assert notes == ["the head starts anew, for the 3 classes of the data: ant, bee, cow"]
        assert setup.variables["fc.kernel"].shape == (512, 3) and setup.variables["fc.kernel"].std() < 0.5
    else:
        assert notes == []
        np.testing.assert_array_equal(setup.variables["fc.kernel"], head["fc.kernel"][:, order])
        np.testing.assert_array_equal(setup.variables["fc.bias"], head["fc.bias"][order])


def test_weights_that_do_not_state_their_preprocessing_are_noted(tmp_path):
    model = ModelConfig(18, "cifar", 10, Preprocessing((32, 32), (32, 32)))
    weights = write_checkpoint(
        tmp_path / "weights.safetensors", models.Architecture("imagenet", (1,), False, 3, width=4)
    )
    configuration = Configuration(model, MeshShape(1, 1), weights=str(weights))
    (note,) = set_up(configuration, Recipe()).notes
    assert note.startswith("the weights don't state their preprocessing: the shorter side becomes 256 pixels")
    assert set_up(dataclasses.replace(configuration, resize=232), Recipe()).notes == ()


def test_weights_of_the_image_size_that_flags_ask_of_a_configuration(monkeypatch):
    stated = Preprocessing((24, 24), (24, 24))
    weights = models.Weights(models.Architecture.resnet(18, "cifar", 10), {}, Description(stated))
    monkeypatch.setattr(models, "read_weights", lambda path: weights)
    model = ModelConfig(18, "cifar", 10, Preprocessing((32, 32), (32, 32)))
    configuration = Configuration(model, MeshShape(1, 1), explicit_config=True, weights="given", image_size=24)
    assert set_up(configuration, Recipe()).model.preprocessing == stated
    for image_size in (0, 16):
        with pytest.raises(UsageError, match="--config needs weights with size 32, 32, got 24, 24 in given"):
            set_up(dataclasses.replace(configuration, image_size=image_size), Recipe())
    resized = models.Weights(weights.architecture, {}, Description(Preprocessing((24, 24), (32, 32))))
    monkeypatch.setattr(models, "read_weights", lambda path: resized)
    with pytest.raises(UsageError, match="--config needs weights with size 32, 32, got 24, 24 in given"):
        set_up(configuration, Recipe())  # whose images become 24×24 pixels before the crop


def test_the_curves_of_data_in_a_folder_with_dollars_in_its_name(tmp_path):
    shares = dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_top1", "learning_rate"), 0.5)
    epochs = [{"epoch": epoch, "images_per_second": 3.0, **shares} for epoch in (1, 2)]
    draw_curves(epochs, "resnet18 on folder /data/$my_$/x", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert min(picture.size) > 400


def test_the_recipe_in_configs():
    config = read_config_file("train_resnet101_cifar10")
    assert config.preset.model == read_config_file("resnet101_cifar10").preset.model
    assert isinstance(config.recipe, Recipe)
