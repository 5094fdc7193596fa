"""Training: it learns, stops and goes on to the same numbers, says when it diverges, and is the same on any mesh."""

import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import PartitionSpec as P

from cambrian import engine
from cambrian.models.checkpoints.description import Description
from cambrian.models.checkpoints.weights import read_weights
from cambrian.models.execution.make_plan import make_plan
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.build_program import build_program
from cambrian.models.resnet.network import network
from cambrian.models.resnet.variables import initial_variables
from cambrian.models.training.checkpoints import Checkpoints, model_facts
from cambrian.models.training.loop import EpochMetrics, TrainingData, TrainingDiverged, mean_cross_entropy, train
from cambrian.models.training.recipe import Recipe
from cambrian.models.training.steps import epoch_order, initial_state, steps_function
from cambrian.sharding import MeshShape, Preprocessing, UsageError, make_mesh
from cambrian.sharding.host import without_compilation_cache

SMALL = Architecture("cifar", (1, 1), False, 4, width=8)
TINY = Architecture("cifar", (1,), False, 4, width=4)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
DESCRIPTION = Description(Preprocessing((8, 8), (8, 8), MEAN, STD), ("a", "b", "c", "d"))
RECIPE = Recipe(epochs=3, batch_size=16, warmup_epochs=1, crop_padding=1, ema_decay=0.5, checkpoint_every_s=0.0)


def noise(num_images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(num_images, 8, 8, 3), dtype=np.uint8)
    return images, rng.integers(4, size=num_images).astype(np.int32)


ONE_DEVICE = MeshShape(1, 1)
DATA = TrainingData(*noise(40), *noise(20, seed=1))


def run(folder, architecture=TINY, recipe=RECIPE, data=DATA, shape=ONE_DEVICE, on_progress=lambda _: None, seed=0):
    """Trains; returns the variables and the epochs' metrics without times."""
    epochs: list[EpochMetrics] = []
    variables = train(
        architecture,
        initial_variables(architecture),
        recipe,
        data,
        make_mesh(shape, jax.devices()),
        precision="float32",
        mean=MEAN,
        std=STD,
        seed=seed,
        checkpoints=Checkpoints(folder),
        facts=model_facts(architecture, DESCRIPTION) | {"seed": seed, "recipe": dataclasses.asdict(recipe)},
        on_progress=on_progress,
        on_epoch=epochs.append,
    )
    return variables, [dataclasses.replace(epoch, images_per_second=0.0) for epoch in epochs]


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compiles only once what most trainings here share, except for the steps."""
    folder, before = str(tmp_path_factory.mktemp("jax")), jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", folder)
    reset_cache()
    yield folder
    jax.config.update("jax_compilation_cache_dir", before)
    reset_cache()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished training: its variables, its epochs and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return *run(folder), folder


def assert_same(variables, expected):
    assert variables.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(variables[name], value, strict=True)


@pytest.mark.slow
def test_it_learns_64_images_by_heart_and_the_offline_engine_agrees(tmp_path):
    images, labels = noise(64)
    data = TrainingData(images, labels, images, labels)
    recipe = Recipe(
        epochs=100, batch_size=32, learning_rate=0.1, label_smoothing=0.0, crop_padding=0, flip=False, ema_decay=0.9,
        evaluate_every_epochs=100,
    )  # fmt: skip
    variables, epochs = run(tmp_path / "checkpoints", SMALL, recipe, data)
    assert (epochs[-1].epoch, epochs[-1].step, epochs[-1].test_top1) == (100, 200, 1.0)
    assert [epoch.test_top1 for epoch in epochs[:-1]] == [None] * 99

    weights = read_weights(tmp_path / "checkpoints")
    assert weights.architecture == SMALL
    assert weights.description == DESCRIPTION
    assert_same(weights.variables, variables)
    assert_same(read_weights(tmp_path / "checkpoints" / "200").variables, variables)
    shape = MeshShape(2, 2)
    mesh = make_mesh(shape, jax.devices())
    plan = make_plan(network(SMALL, 8), shape, 16, "cpu")
    program = build_program(
        SMALL, weights.variables, plan, mesh, image_size=8, batch_size=16, mean=MEAN, std=STD
    )  # fmt: skip
    engine.save(engine.compile_program(program), tmp_path / "artifact", tmp_path / "key")
    logits = engine.load(tmp_path / "artifact", signing_key=tmp_path / "key")(images)
    assert (logits.argmax(axis=1) == labels).all()
    assert mean_cross_entropy(logits, labels) == pytest.approx(epochs[-1].test_loss, rel=1e-3)


class Killed(BaseException):
    """Ends a training between two steps, of which nothing but the checkpoints is left."""


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_the_same_numbers(tmp_path, undisturbed):
    def stop(progress):
        if progress.step == 5:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, on_progress=stop)
    assert Checkpoints(tmp_path).latest_step() == 4  # the end of an epoch
    variables, epochs = run(tmp_path)
    assert_same(variables, undisturbed[0])
    assert epochs == undisturbed[1]
    again = run(tmp_path)  # nothing is left to do
    assert_same(again[0], variables)
    assert again[1] == epochs


def run_until_killed(folder):
    def kill(progress):
        if progress.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    run(Path(folder), on_progress=kill)


@pytest.mark.slow
def test_a_killed_process_leaves_what_another_goes_on_from(tmp_path, undisturbed, compilation_cache):
    code = "import conftest, sys, test_training; test_training.run_until_killed(sys.argv[1])"
    killed = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=Path(__file__).parent,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": compilation_cache},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert Checkpoints(tmp_path).latest_step() == 3  # amid an epoch
    variables, epochs = run(tmp_path)
    assert_same(variables, undisturbed[0])
    assert epochs == undisturbed[1]


@pytest.mark.slow
def test_a_checkpoint_of_another_training_is_refused(undisturbed):
    with pytest.raises(UsageError, match="a training must resume from its own checkpoint, with seed 1, got 0 in"):
        run(undisturbed[2], seed=1)


@pytest.mark.slow
def test_the_number_of_devices_changes_rounding_only(tmp_path, undisturbed):
    variables, epochs = run(tmp_path, shape=MeshShape(1, 4))
    for ours, theirs in zip(epochs, undisturbed[1], strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours.test_loss == pytest.approx(theirs.test_loss, rel=1e-4)
    for name, value in undisturbed[0].items():
        np.testing.assert_allclose(variables[name], value, atol=1e-4)


def steps_on_device(recipe, in_one_launch):
    """A function from the steps of each launch, within an epoch of five, to the state after them and the last loss."""
    mesh = make_mesh(ONE_DEVICE, jax.devices())
    replicated = jax.NamedSharding(mesh, P())
    images, labels = jax.device_put((DATA.images, DATA.labels), replicated)
    order = jax.device_put(epoch_order(0, jnp.int32(0), 40), replicated)
    steps = jax.jit(
        steps_function(
            TINY, recipe, mesh,
            num_images=40, dtype=jnp.float32, mean=MEAN, std=STD, seed=0, in_one_launch=in_one_launch,
        ),
        out_shardings=replicated,
    )  # fmt: skip

    def after(*calls):
        state = jax.jit(lambda: initial_state(initial_variables(TINY), recipe, 5), out_shardings=replicated)()
        loss = jnp.float32(0)
        for number in calls:
            with without_compilation_cache():
                state, loss = steps(state, images, labels, order, jax.device_put(np.int32(number), replicated))
        return state, loss

    return after


@pytest.mark.slow
def test_a_device_that_goes_from_step_to_step_by_itself_takes_the_same_steps():
    recipe = dataclasses.replace(RECIPE, batch_size=8, accumulation_steps=2)
    after = steps_on_device(recipe, in_one_launch=True)
    state, loss = after(4)
    assert (state.step, state.num_images) == (4, 32)
    jax.tree.map(np.testing.assert_array_equal, after(1, 3), (state, loss))
    by_the_host = steps_on_device(recipe, in_one_launch=False)(1, 1, 1, 1)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-4), by_the_host, (state, loss))


@pytest.mark.slow
def test_a_device_that_goes_on_by_itself_stops_where_the_loss_is_no_number():
    recipe = dataclasses.replace(RECIPE, batch_size=8, learning_rate=1e30, warmup_epochs=0.0, momentum=0.0)
    state, loss = steps_on_device(recipe, in_one_launch=True)(5)
    assert 1 < state.step < 5 and not jnp.isfinite(loss)


def test_only_an_epoch_shuffles_the_images():
    def text_of(function, *arguments):
        return jax.jit(function).lower(*arguments).as_text()

    steps = steps_function(
        TINY, RECIPE, make_mesh(ONE_DEVICE, jax.devices()),
        num_images=40, dtype=jnp.float32, mean=MEAN, std=STD, seed=0, in_one_launch=False,
    )  # fmt: skip
    state = initial_state(initial_variables(TINY), RECIPE, 2)
    assert "stablehlo.sort" not in text_of(
        steps, state, DATA.images, DATA.labels, np.arange(40, dtype=np.int32), np.int32(1)
    )
    assert "stablehlo.sort" in text_of(lambda epoch: epoch_order(0, epoch, 40), np.int32(0))


@pytest.mark.slow
def test_adamw_with_every_augmentation_trains(tmp_path):
    recipe = dataclasses.replace(RECIPE, optimizer="adamw", learning_rate=1e-2, cutout_size=2, mixup_alpha=0.2)
    variables, epochs = run(tmp_path, recipe=recipe)
    assert len(epochs) == 3 and all(np.isfinite(value).all() for value in variables.values())
    assert not np.array_equal(variables["fc.kernel"], initial_variables(TINY)["fc.kernel"])


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_it(tmp_path):
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30, warmup_epochs=0.0, momentum=0.0)
    with pytest.raises(
        TrainingDiverged, match=r"the loss must stay finite, got (nan|inf) at step \d of 6 .* lower learning_rate"
    ):
        run(tmp_path, recipe=recipe)
    latest = Checkpoints(tmp_path).latest_step()
    assert latest is None or latest < 6


@pytest.mark.slow
def test_a_last_step_that_goes_too_far_leaves_no_checkpoint(tmp_path):
    recipe = Recipe(freeze="backbone", epochs=2, batch_size=40, learning_rate=1e30, weight_decay=1e6, warmup_epochs=0)
    with pytest.raises(TrainingDiverged, match=r"weights and their logits must be finite, .* at step 2 of 2 .* lower"):
        run(tmp_path, recipe=recipe)
    assert Checkpoints(tmp_path).latest_step() is None


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({}, MeshShape(2, 1), "the mesh must be 1xDATA for training, got 2x1"),
        ({}, MeshShape(1, 3), "batch_size must be a multiple of 1 accumulation steps × 3 devices, got 16"),
        (
            {"accumulation_steps": 3},
            MeshShape(1, 1),
            "batch_size must be a multiple of 3 accumulation steps × 1 devices",
        ),
        ({"batch_size": 64}, MeshShape(1, 1), "batch_size must be at most the 40 training images, got 64"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(tmp_path, changes, shape, message):
    with pytest.raises(UsageError, match=message):
        run(tmp_path, recipe=dataclasses.replace(RECIPE, **changes), shape=shape)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"or a checkpoint of a training, got"):
        read_weights(tmp_path)


@pytest.mark.slow
def test_a_checkpoint_is_read_whatever_its_folder_is_called(tmp_path, undisturbed, monkeypatch):
    (tmp_path / "latest").symlink_to(undisturbed[2] / "6")
    monkeypatch.chdir(shutil.copytree(undisturbed[2] / "6", tmp_path / "best"))
    for path in (tmp_path / "latest", tmp_path / "best", "."):
        assert_same(read_weights(path).variables, undisturbed[0])


def flip_a_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position // 8 % len(data)] ^= 1 << position % 8
    path.write_bytes(data)


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_refused_by_name(tmp_path, undisturbed):
    whole = undisturbed[2] / "6"
    rng = np.random.default_rng(0)
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file() and path.stat().st_size]
    assert {Path("facts.json"), Path("digests.json")} < set(files)
    for number, name in enumerate(files):
        step = shutil.copytree(whole, tmp_path / str(number) / "6")
        flip_a_bit(step / name, int(rng.integers(8 * (step / name).stat().st_size)))
        named = re.escape(str(step)) if name == Path("digests.json") else re.escape(f"{step / name} must have the SHA")
        for path in (step, step.parent):
            with pytest.raises(UsageError, match=f"checkpoint damaged: {named}"):
                read_weights(path)


@pytest.mark.slow
def test_a_training_goes_on_from_the_last_whole_checkpoint(tmp_path, undisturbed):
    folder = Path(shutil.copytree(undisturbed[2], tmp_path / "damaged"))
    older, newest = Checkpoints(folder).steps()
    damaged = max((folder / str(newest) / "state").rglob("*"), key=lambda path: path.stat().st_size)
    flip_a_bit(damaged, 1000)
    assert Checkpoints(folder).latest_step() == older
    fault = f"checkpoint damaged: {damaged} must have the SHA-256 that digests.json states"
    assert Checkpoints(folder).damaged() == [fault]
    assert read_weights(folder).notes == (fault,)
    variables, epochs, *_ = run(folder)
    assert_same(variables, undisturbed[0])
    assert epochs == undisturbed[1]
    assert (Checkpoints(folder).steps(), Checkpoints(folder).damaged()) == ([older, newest], [])


def test_a_checkpoint_that_could_not_be_finished_leaves_no_trace(tmp_path, undisturbed, monkeypatch):
    folder = Path(shutil.copytree(undisturbed[2], tmp_path / "full"))
    (folder / ".unfinished-by-a-killed-process").mkdir()
    before = sorted(path.name for path in folder.iterdir())
    state = initial_state(initial_variables(TINY), RECIPE, 3)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left on device"):
            Checkpoints(folder).save(state._replace(step=jnp.int32(10)), {})
    assert sorted(path.name for path in folder.iterdir()) == before
    Checkpoints(folder).save(state._replace(step=jnp.int32(10)), {})
    assert sorted(path.name for path in folder.iterdir()) == ["10", "6"]


def test_mean_cross_entropy_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32)) + np.float32(100)
    assert mean_cross_entropy(logits, np.array([0, 2])) == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2, rel=1e-4)
    assert jnp.isfinite(mean_cross_entropy(1e4 * logits, np.array([0, 1])))
