"""The parts of a training: augmentation, optimizer and schedule, the recipe's checks."""

import re
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.variables import expected_shapes, initial_variables
from cambrian.models.training.augment import cutout, mixup, random_crop, random_flip
from cambrian.models.training.optimizer import learning_rate_schedule, make_optimizer
from cambrian.models.training.recipe import Recipe
from cambrian.sharding import UsageError

KEY = jax.random.key(0)


@pytest.mark.slow
def test_flip_mirrors_about_half_of_the_images():
    images = jnp.asarray(np.random.default_rng(0).integers(256, size=(64, 4, 5, 3), dtype=np.uint8))
    flipped = random_flip(KEY, images)
    mirrored = [bool((new == old[:, ::-1]).all()) for new, old in zip(flipped, images, strict=True)]
    kept = [bool((new == old).all()) for new, old in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 20 < sum(mirrored) < 44 and flipped.dtype == jnp.uint8


def test_crop_moves_each_image_within_its_mirrored_surroundings():
    images = np.random.default_rng(0).integers(256, size=(40, 4, 4, 3), dtype=np.uint8)
    cropped = np.asarray(random_crop(KEY, jnp.asarray(images), 1))
    assert cropped.dtype == np.uint8 and cropped.shape == images.shape
    offsets = set()
    for image, crop in zip(images, cropped, strict=True):
        around = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="reflect")
        found = [(r, c) for r in range(3) for c in range(3) if (around[r : r + 4, c : c + 4] == crop).all()]
        assert found
        offsets.add(found[0])
    assert len(offsets) > 6


@pytest.mark.slow
def test_cutout_clears_one_square_of_each_image():
    cleared = np.asarray(cutout(KEY, jnp.ones((50, 8, 8, 3)), 4)) == 0
    assert (cleared[..., 0] == cleared[..., 2]).all()
    areas = set()
    for mask in cleared[..., 0]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask.sum() == len(rows) * len(columns)
        assert 2 <= len(rows) <= 4 and 2 <= len(columns) <= 4
        areas.add(len(rows) * len(columns))
    assert 16 in areas and len(areas) > 1


@pytest.mark.slow
def test_mixup_mixes_images_and_targets_alike():
    images, targets = jnp.arange(4.0).reshape(4, 1, 1, 1), jnp.eye(4)
    mixed, mixed_targets = mixup(KEY, images, targets, 0.5)
    share = float(mixed_targets[0, 0])
    assert 0.5 <= share <= 1
    np.testing.assert_allclose(mixed_targets[0], [share, 0, 0, 1 - share], rtol=1e-6)
    np.testing.assert_allclose(mixed[:, 0, 0, 0], share * np.arange(4) + (1 - share) * np.arange(4)[::-1], rtol=1e-6)


def test_the_schedule_rises_then_falls_to_zero():
    schedule = learning_rate_schedule(Recipe(epochs=10, warmup_epochs=2, learning_rate=0.4), steps_per_epoch=5)
    assert [float(schedule(step)) for step in (0, 5, 10, 30, 50)] == pytest.approx([0, 0.2, 0.4, 0.2, 0], abs=1e-7)
    assert float(learning_rate_schedule(Recipe(warmup_epochs=0), 5)(0)) == pytest.approx(0.1)


@pytest.mark.parametrize("steps_per_epoch", [1, 2, 3])
def test_a_warm_up_of_nearly_all_epochs_leaves_a_step_to_decay(steps_per_epoch):
    schedule = learning_rate_schedule(Recipe(epochs=1, warmup_epochs=0.9, learning_rate=0.4), steps_per_epoch)
    assert float(schedule(steps_per_epoch - 1)) == pytest.approx(0.4)
    assert float(schedule(steps_per_epoch)) == pytest.approx(0, abs=1e-7)


def updates_of(recipe: Recipe, params: dict, gradients: dict, steps: int) -> dict[str, np.ndarray]:
    optimizer = make_optimizer(recipe, steps_per_epoch=1000)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(gradients, state, params)
        params = cast(dict, optax.apply_updates(params, updates))
    return {name: np.asarray(value) for name, value in params.items()}


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_only_kernels_decay(optimizer):
    recipe = Recipe(optimizer=optimizer, learning_rate=0.1, weight_decay=0.5, warmup_epochs=0)
    names = ["conv1.kernel", "bn1.scale", "bn1.bias", "fc.kernel", "fc.bias"]
    params = {name: jnp.ones(2) for name in names}
    after = updates_of(recipe, params, {name: jnp.zeros(2) for name in names}, 1)
    assert {name for name, value in after.items() if (value < 1).all()} == {"conv1.kernel", "fc.kernel"}
    assert all((after[name] == 1).all() for name in names if not name.endswith("kernel"))


def test_sgd_has_nesterov_momentum():
    recipe = Recipe(learning_rate=0.1, momentum=0.5, weight_decay=0.0, warmup_epochs=0, epochs=10**6)
    after = updates_of(recipe, {"fc.bias": jnp.zeros(1)}, {"fc.bias": jnp.ones(1)}, 2)
    # Velocities 1 and 1.5; each step moves by gradient + momentum × velocity: 1.5 and 1.75.
    assert after["fc.bias"] == pytest.approx(-0.1 * (1.5 + 1.75), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"freeze": "head"}, "freeze must be one of none, backbone, got 'head'"),
        ({"optimizer": "lamb"}, "optimizer must be one of sgd, adamw, got 'lamb'"),
        ({"epochs": 0}, "epochs must be from 1 to 1000000, got 0"),
        ({"epochs": 2.0}, "epochs must be of type int, got 2.0"),
        ({"batch_size": True}, "batch_size must be of type int, got True"),
        ({"weight_decay": -1.0}, "weight_decay must be from 0 to 1000000.0, got -1.0"),
        ({"mixup_alpha": float("nan")}, "mixup_alpha must be from 0 to 1000000.0, got nan"),
        ({"momentum": "0.9"}, "momentum must be of type float, got '0.9'"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and below 1, got 1.0"),
        ({"learning_rate": 0.0}, "learning_rate must be from 1e-12 to 1e+30, got 0.0"),
        ({"epochs": 2, "warmup_epochs": 2.0}, "warmup_epochs must be below the 2 epochs, got 2.0"),
    ],
)
def test_a_recipe_checks_its_values(values, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        Recipe(**values)


def test_initial_variables_make_every_block_the_identity():
    architecture = Architecture("cifar", (2, 1), True, 5, width=4)
    variables = initial_variables(architecture)
    assert {name: value.shape for name, value in variables.items()} == expected_shapes(architecture)
    for name, value in variables.items():
        if name.endswith((".scale", ".var")):
            assert (value == (0 if name.endswith("bn3.scale") else 1)).all()
        elif name.endswith((".kernel", "fc.bias")):
            assert value.std() > 0
        else:
            assert (value == 0).all()
    kernel = initial_variables(Architecture("cifar", (1,), False, 5, width=64))["layer1.0.conv1.kernel"]
    assert kernel.std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
