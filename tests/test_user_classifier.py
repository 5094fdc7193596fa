"""Users' own classifiers: by the library, and by the function that --model names."""

import dataclasses
import re
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cambrian
from cambrian.commands.executables import make_executable
from cambrian.commands.flags import read_configuration
from cambrian.commands.sweep.setup import sweep_of_flags
from cambrian.commands.user_model import UserModel, read_user_model
from cambrian.sharding.host import acquire_devices
from command import LABELS, write_images
from flag_values import parse

SIZE = cambrian.Preprocessing((8, 8), (8, 8), mean=(0.5, 0.25, 0.75), std=(0.25, 0.5, 1.0))
NETS = f"""
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import cambrian
from scale import SCALE

SIZE = cambrian.Preprocessing((8, 8), (8, 8))


def linear(params, images):
    return images.reshape(len(images), -1) @ params["kernel"] * SCALE


def classifier(weights: Path | None = None):
    kernel = np.random.default_rng(0).standard_normal((192, 10), np.float32)
    kernel = kernel if weights is None else np.load(weights)
    return cambrian.Classifier(linear, {{"kernel": kernel}}, SIZE, labels={LABELS})


def strict(path):
    return classifier(path)


def plain():
    return classifier()


def raising():
    raise KeyError("absent")


def exiting():
    raise SystemExit(0)


def model():
    return linear


def branching():
    def function(params, images):
        return images if images.sum() > 0 else -images

    return cambrian.Classifier(function, (), SIZE)


def mislabelled():
    return cambrian.Classifier(linear, {{"kernel": np.zeros((192, 9), np.float32)}}, SIZE, labels={LABELS})


number = 3
"""


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 16, kernel_size=(3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, images):
        return self.head(nnx.relu(self.norm(self.conv(images))).mean(axis=(1, 2)))


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """The path of a module of users' functions, beside a module that it imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # restores sys.path
    (tmp_path / "scale.py").write_text("SCALE = 2.0\n")
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path / "nets.py"


def read(model: str, weights: str = "auto", batch_size: int = 4) -> UserModel:
    sys.modules.pop("scale", None)  # as in another process
    return read_user_model(model, weights, acquire_devices(1, "cpu")[0][0], batch_size)


@pytest.mark.slow
def test_a_classifier_is_compiled_and_saved_and_classifies(tmp_path):
    network = Network(nnx.Rngs(0))
    classifier = cambrian.Classifier(network, preprocessing=SIZE, labels=LABELS)
    executable = cambrian.compile(classifier, mesh="2x4", batch_size=8, partition="intra_sample")
    assert executable.metadata["intra_sample_flops_fraction"] > 0.9
    pixels = write_images(tmp_path / "images", ["ant/1.png", "jay/2.png", "ant/2.png"])
    network.eval()
    logits = np.asarray(network((pixels / np.float32(255) - jnp.asarray(SIZE.mean)) / jnp.asarray(SIZE.std)))
    np.testing.assert_allclose(executable(pixels), logits, rtol=1e-4, atol=1e-5)
    executable.save(tmp_path / "artifact", signing_key=tmp_path / "key")
    loaded = cambrian.load(
        tmp_path / "artifact", devices=list(executable.mesh.devices.flat), signing_key=tmp_path / "key"
    )
    assert loaded.parity is not None and loaded.parity.max_relative_error < 1e-4
    for classifying in (executable, loaded):
        predictions = classifying.classify(tmp_path / "images")
        assert [p.label for p in predictions] == ["ant", "ant", "jay"]
        assert [p.predicted for p in predictions] == [LABELS[index] for index in logits[[0, 2, 1]].argmax(axis=1)]


def mean(params, images):
    return images.mean((1, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cambrian.Classifier(mean, labels=["a"]), "labels must be of type tuple, got ['a']"),  # pyright: ignore
        (lambda: cambrian.Classifier(mean, labels=(1,)), "each label must be of type str, got 1"),  # pyright: ignore
        (lambda: cambrian.Classifier(mean, preprocessing=224), "preprocessing must be of type"),  # pyright: ignore
        (lambda: cambrian.Classifier(mean, trained=1), "trained must be of type bool, got 1"),  # pyright: ignore
        (lambda: cambrian.compile(cambrian.Classifier(3)), "expected a function, or a model of Flax, "),
        (
            lambda: cambrian.compile(cambrian.Classifier(mean), {}),
            "belong to a function or module, got them with a cla",
        ),
        (
            lambda: cambrian.compile(cambrian.Classifier(mean, labels=("a", "b"))),
            "labels must name all 3 classes, got 2",
        ),
        (
            lambda: cambrian.compile(cambrian.Classifier(lambda params, images: images), batch_size=2),
            "must return logits (2, classes) of floats, got (2, 224, 224, 3) float32",
        ),
        (
            lambda: cambrian.compile(cambrian.Classifier(lambda params, images: {"a": images}), batch_size=2),
            "must return logits (2, classes) of floats, got dict",
        ),
        (
            lambda: cambrian.compile(cambrian.Classifier(lambda params, images: images.argmax(1)), batch_size=2),
            "of floats, got (2, 224, 3) int32",
        ),
        (
            lambda: cambrian.compile(cambrian.Classifier(lambda params, images: images.mean((1, 2))[:, :0])),
            "classes) of floats, got (64, 0) float32",
        ),
    ],
)
def test_what_is_no_classifier_is_refused(make, message):
    with pytest.raises(cambrian.UsageError, match=re.escape(message)):
        make()


def line_of(text: str) -> int:
    return NETS[: NETS.index(text)].count("\n") + 1


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("nets.py", "auto", "model must be MODULE:FUNCTION, such as nets.py:mobilenet, got 'nets.py'"),
        ("absent.py:plain", "auto", "model must name an existing Python file, got absent.py"),
        ("absent.nets:plain", "auto", "model must name a Python file or module, got 'absent.nets': ModuleNotFoundE"),
        ("exiting.nets:plain", "auto", "model must name a Python file or module, got 'exiting.nets': SystemExit: 3"),
        ("sys:exit", "auto", "model must name a Python file or module, got 'sys': it has no Python file"),
        ("nets.py:absent", "auto", "nets.py must define a function absent, got no such name"),
        ("nets.py:number", "auto", "nets.py must define a function number, got int"),
        ("broken.py:plain", "auto", "broken.py, line 2: SyntaxError: invalid syntax"),
        ("nets.py:raising", "auto", f"nets.py, line {line_of('raise KeyError')}: KeyError: 'absent'"),
        ("nets.py:exiting", "auto", f"nets.py, line {line_of('raise SystemExit')}: SystemExit: 0"),
        ("nets.py:model", "auto", f"line {line_of('def model')}: model must return a cambrian.Classifier, got func"),
        ("nets.py:branching", "auto", f"line {line_of('return images if')}: TracerBoolConversionError: "),
        ("nets.py:mislabelled", "auto", f"line {line_of('def mislabelled')}: labels must name all 9 classes, got 10"),
        ("nets.py:strict", "random", f"line {line_of('def strict')}: the function has a parameter path: --weights"),
        ("nets.py:plain", "a.npy", f"line {line_of('def plain')}: the function has no parameter weights: leave"),
        ("nets.py:strict", "a.npy", f"line {line_of('kernel = kernel if')}: FileNotFoundError: "),
    ],
)  # fmt: skip
def test_errors_of_the_users_code_name_file_and_line(nets, model, weights, message):
    nets.with_name("broken.py").write_text("import cambrian\ndef = 3\n")
    nets.with_name("exiting").mkdir()
    (nets.with_name("exiting") / "__init__.py").write_text("raise SystemExit(3)")
    with pytest.raises(cambrian.UsageError, match=re.escape(message)):
        read(model, weights)
    assert not list(nets.parent.glob("__pycache__/nets*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--config", "resnet101_cifar10"), "--config belongs to a ResNet: leave it out with --model, got 'resnet101_"),
        (("--image_size", 32), "--image_size belongs to a ResNet: leave it out with --model, got 32"),
        (("--resize", 40), "--resize belongs to a ResNet: leave it out with --model, got 40"),
        (("--mode", "plan", "--tune"), "--tune belongs to a ResNet: leave it out with --model, got True"),
        (("--mode", "train"), "mode train trains ResNets: leave --model out, got 'nets.py:plain'"),
        (("--artifact", "received"), "an artifact decides its own model: leave --model out, got 'nets.py:plain'"),
    ],
)
def test_flags_that_contradict_a_users_model_are_refused(flags, message):
    with pytest.raises(cambrian.UsageError, match=re.escape(message)):
        read_configuration(parse("--model", "nets.py:plain", *flags))


def test_whatever_changes_the_program_changes_its_identity(nets):
    np.save("a.npy", np.ones((192, 10), np.float32))
    first, given = read("nets.py:plain").identity(), read("nets.py:strict", "a.npy").identity()
    assert read("nets.py:plain").identity() == first

    nets.with_name("scale.py").write_text(
        "SCALE = 4.00\n"
    )  # of another length: Python's cache compares length and seconds
    assert changed(first, read("nets.py:plain").identity()) == {"computation"}
    nets.with_name("scale.py").write_text("SCALE = 2.0\n")
    np.save("a.npy", np.full((192, 10), 3, np.float32))
    assert changed(given, read("nets.py:strict", "a.npy").identity()) == {"params"}
    assert changed(first, read("nets.py:plain", batch_size=8).identity()) == {"computation"}

    nets.write_text(NETS.replace("(8, 8), (8, 8)", "(8, 8), (9, 9)"))
    assert changed(first, read("nets.py:plain").identity()) == {"file", "preprocessing"}
    nets.write_text(NETS.replace("labels=", "trained=False, labels="))
    assert changed(first, read("nets.py:plain").identity()) == {"file", "trained"}
    nets.write_text(NETS.replace("'ant'", "'aunt'"))
    assert changed(first, read("nets.py:plain").identity()) == {"file", "labels"}


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


@pytest.mark.slow
def test_a_sweep_of_a_users_model_builds_each_executable_once(nets, tmp_path):
    flags = parse(
        *("--model", "nets.py:classifier", "--mesh", "1x2,2x2", "--precision", "float32,bfloat16"),
        *("--batch_size", "8", "--data", "synthetic", "--num_images", "16", "--artifact_dir", tmp_path / "cache"),
    )
    sweep = sweep_of_flags(flags, ["python", "main.py"])
    assert set(sweep.predictions.values()) == {None} and len(sweep.predictions) == 4
    for cell in sweep.grid.cells:
        assert "--model nets.py:classifier" in " ".join(sweep.run_command(cell, 0, tmp_path))
        configuration = read_configuration(flags, cell.flags)
        built, found = make_executable(configuration), make_executable(configuration)
        assert built.build_ms is not None and found.build_ms is None
        assert found.executable.name == "classifier" and found.executable.metadata["labels"] == list(LABELS)
        assert found.executable.metadata["precision"] == cell["precision"]
    assert len(list((tmp_path / "cache").iterdir())) == 4
    nets.write_text(NETS.replace("* SCALE", "+ SCALE"))
    assert make_executable(configuration).build_ms is not None
    model = dataclasses.replace(configuration, execution="online", precision="auto")
    assert make_executable(model).executable.metadata["precision"] == "float32"
