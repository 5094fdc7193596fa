"""Training of the last layer only: the backbone stays as it is, and the head follows the gradient of the network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from cambrian.commands.config_file import read_config_file
from cambrian.commands.configuration import Configuration
from cambrian.commands.model import weights_path
from cambrian.commands.train.setup import open_images, set_up
from cambrian.models.checkpoints.weights import read_weights
from cambrian.models.resnet.variables import initial_variables, random_variables
from cambrian.models.training.network import network_function
from cambrian.models.training.recipe import Recipe
from cambrian.models.training.steps import initial_state, steps_function
from cambrian.sharding import MeshShape, UsageError, make_mesh
from cambrian.sharding.host import without_compilation_cache
from command import write_images
from test_training import DATA, MEAN, RECIPE, STD, TINY, Killed, assert_same, run

FROZEN = dataclasses.replace(RECIPE, freeze="backbone")
HEAD = {"fc.kernel", "fc.bias"}


@pytest.mark.slow
def test_the_backbone_stays_bit_identical_and_a_stopped_training_resumes(tmp_path):
    def stop(progress):
        if progress.step == 5:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, recipe=FROZEN, on_progress=stop)
    with pytest.raises(UsageError, match=r"with recipe\.freeze 'none', got 'backbone' in"):
        run(tmp_path, recipe=RECIPE)
    variables, epochs = run(tmp_path, recipe=FROZEN)
    start = initial_variables(TINY)
    assert {name for name, value in start.items() if not np.array_equal(value, variables[name])} == HEAD
    assert_same(read_weights(tmp_path).variables, variables)
    undisturbed = run(tmp_path / "undisturbed", recipe=FROZEN)
    assert_same(variables, undisturbed[0])
    assert epochs == undisturbed[1]


@pytest.mark.slow
def test_a_step_follows_the_gradient_of_the_whole_network_in_inference():
    recipe = Recipe(
        freeze="backbone", batch_size=40, learning_rate=0.5, warmup_epochs=0, momentum=0.0, weight_decay=0.0,
        label_smoothing=0.0, crop_padding=0, flip=False,
    )  # fmt: skip
    mesh = make_mesh(MeshShape(1, 1), jax.devices())
    state = jax.device_put(initial_state(random_variables(TINY), recipe, 1), NamedSharding(mesh, P()))
    images = (DATA.images / np.float32(255) - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)

    def loss_of(params, statistics):
        logits, _ = network_function(TINY, jnp.float32, training=False)(params, statistics, jnp.asarray(images))
        return -jax.nn.log_softmax(logits)[jnp.arange(40), DATA.labels].mean()

    loss, gradient = jax.jit(jax.value_and_grad(loss_of))(state.params, state.statistics)
    steps = steps_function(
        TINY, recipe, mesh, num_images=40, dtype=jnp.float32, mean=MEAN, std=STD, seed=0, in_one_launch=False
    )
    assert {leaf.shape for leaf in jax.tree.leaves(state.optimizer)} <= {(4,), state.params["fc.kernel"].shape, ()}
    with without_compilation_cache():
        after, got = jax.jit(steps)(state, DATA.images, DATA.labels, np.arange(40), 1)
    assert got == pytest.approx(float(loss), rel=1e-5)
    for name, value in after.params.items():
        moved = 0.5 * gradient[name] if name in HEAD else 0
        np.testing.assert_allclose(value, state.params[name] - moved, rtol=1e-5, atol=1e-6)
        assert name not in HEAD or np.abs(moved).max() > 1e-3


@pytest.mark.slow
def test_other_classes_than_those_of_the_config_get_a_new_head_only_on_a_frozen_backbone(tmp_path):
    write_images(tmp_path, [f"{split}/{name}/{n}.png" for split in ("train", "test") for name in "abc" for n in (0, 1)])
    model = read_config_file("resnet101_cifar10").preset.model
    configuration = Configuration(model, MeshShape(1, 1), explicit_config=True, data=str(tmp_path))
    frozen = Recipe(freeze="backbone")
    start = set_up(configuration, frozen)
    with pytest.raises(UsageError, match="--config needs the classes airplane, automobile, bird, cat, deer and 5 more"):
        open_images(configuration, Recipe(), start)
    _, _, setup, notes = open_images(configuration, frozen, start)
    assert notes == ["the head starts anew, for the 3 classes of the data: a, b, c"]
    assert (setup.architecture.num_classes, setup.model.labels) == (3, ("a", "b", "c"))
    assert setup.variables["fc.kernel"].shape == (2048, 3)
    shipped = weights_path(configuration)
    assert shipped is not None and start.weights == shipped
    given = read_weights(shipped).variables
    backbone = given.keys() - HEAD
    assert_same({name: setup.variables[name] for name in backbone}, {name: given[name] for name in backbone})
