"""Users' classifiers by the command: run, received as an artefact, refused."""

import pytest
from PIL import Image

from cambrian.commands import executables
from cambrian.commands.flags import read_configuration
from command import LABELS, Command, CommandHere, write_images
from flag_values import parse

pytestmark = pytest.mark.slow

NETS = f"""
import dataclasses

import cambrian
import jax.numpy as jnp
from flax import nnx


class Network(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, kernel_size=(3, 3), rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, images):
        return self.head(nnx.relu(self.conv(images)).mean(axis=(1, 2)))


class OfDarkImages(Network):
    def __call__(self, images):
        is_dark = images.min(axis=(1, 2, 3)) < 0
        return super().__call__(images) * jnp.where(is_dark, 1.0, jnp.nan)[:, None]


def of_dark_images():
    return dataclasses.replace(network(), model=OfDarkImages(nnx.Rngs(0)))


def network():
    size = cambrian.Preprocessing((8, 8), (8, 8))
    return cambrian.Classifier(Network(nnx.Rngs(0)), preprocessing=size, labels={LABELS})


def softmax():
    logits = network()
    return dataclasses.replace(logits, model=nnx.Sequential(logits.model, nnx.softmax))
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    command = CommandHere(tmp_path_factory.mktemp("home"))
    (command.home / "nets.py").write_text(NETS)
    write_images(command.home / "images", [f"{label}/{number}.png" for label in LABELS for number in range(2)])
    return command


def test_a_users_model_runs_and_its_artifact_runs_without_it(command, monkeypatch):
    monkeypatch.setattr(executables, "SLOW_MODEL_MS", 0.0)
    flags = ("--model", "nets.py:network", "--mesh", "2x2", "--batch_size", "8")
    run = command.run(*flags, "--data", "images")
    report = run.report
    assert (report["model"], report["precision"], report["num_images"]) == ("network", "float32", 20)
    assert report["weights"] == "nets.py:network" and 0 <= report["top1"] <= report["top5"] <= 1
    assert report["parity_max_relative_error"] < 1e-4 and report["build_ms"] > 0
    assert {"classes.csv", "confusion.png"} <= {path.name for path in run.output_dir.iterdir()}

    again = read_configuration(parse("--config", run.output_dir / "report.json"))
    assert again.user_model.endswith("/nets.py:network")  # from any folder
    assert (str(again.mesh), again.batch_size) == ("2x2", 8)

    (artifact,) = command.artifacts
    note = f"each start makes the model by nets.py:network: --artifact {artifact} starts sooner"
    assert note in report["notes"] and note in run.outcome.notes
    (command.home / "nets.py").unlink()
    received = Command(command.home).run("--artifact", artifact, "--data", "images")
    assert received.report["executable"] == "native" and received.predictions == run.predictions
    assert (received.report["top1"], received.report["classes"]) == (report["top1"], report["classes"])


def test_outputs_that_are_probabilities_are_noted(command):
    (command.home / "soft.py").write_text(NETS)
    flags = ("--mesh", "1x1", "--batch_size", "8", "--execution", "online", "--data", "images")
    for name, expected in (("network", 0), ("softmax", 1)):
        run = command.run("--model", f"soft.py:{name}", *flags)
        assert sum("outputs look like probabilities" in note for note in run.report["notes"]) == expected
        assert run.report["notes"] == run.outcome.notes


def test_logits_of_nan_are_noted(command):
    (command.home / "nan.py").write_text(NETS)
    write_images(command.home / "few", ["ant/a.png", "bee/b.png"])
    Image.new("RGB", (8, 8), (255, 255, 255)).save(command.home / "few" / "ant" / "c.png")
    flags = ("--mesh", "1x1", "--batch_size", "8", "--execution", "online", "--data", "few")
    run = command.run("--model", "nan.py:of_dark_images", *flags)
    assert "logits of NaN for 1 image: what is predicted there means nothing" in run.outcome.notes
    assert [prediction["probability"] == "nan" for prediction in run.predictions] == [False, True, False]


def test_a_mistake_in_a_users_file_is_one_line_and_nothing_is_written(command):
    (command.home / "wrong.py").write_text("def network():\n    return absent\n")
    outcome = command("--model", "wrong.py:network", "--mesh", "1x2")
    assert (outcome.exit_code, outcome.error) == (2, "wrong.py, line 2: NameError: name 'absent' is not defined")
    assert not (command.home / "runs").exists()
