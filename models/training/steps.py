"""Training steps on the device, which holds the whole data set and augments it without the host.

If the device loops by itself, one launch runs any number of steps of an epoch. The randomness of a step depends only on
the seed and the index of the step, and the state holds the sums over the epoch. So a training can stop after any step
and resume to the same results.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from cambrian.models.normalise import normaliser
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.variables import Variables
from cambrian.models.training.augment import cutout, mixup, random_crop, random_flip
from cambrian.models.training.convolution import training_convolution
from cambrian.models.training.network import Arrays, network_function, split_variables, trained_part
from cambrian.models.training.optimizer import make_optimizer
from cambrian.models.training.recipe import Recipe
from cambrian.sharding import DATA_AXIS


class TrainState(NamedTuple):
    """The state of a training between two steps, replicated over the devices.

    Attributes:
      step: number of steps done, int32.
      params: parameters of the network by name, float32.
      statistics: running statistics of the batch norms by name, float32.
      average_params: moving average of the trained parameters; empty if the recipe keeps none.
      average_statistics: moving average of the trained statistics; empty if the recipe keeps none.
      optimizer: state of the optax optimizer of the trained parameters.
      loss_sum: sum of the loss over the augmented images of the epoch so far.
      num_hits: number of those images classified correctly.
      num_images: number of those images.
    """

    step: jax.Array
    params: Arrays
    statistics: Arrays
    average_params: Arrays
    average_statistics: Arrays
    optimizer: Any
    loss_sum: jax.Array
    num_hits: jax.Array
    num_images: jax.Array


# (state, images, labels, order of the epoch, number of steps in it) → (state, loss of the last step). Stops early if
# the loss isn't finite.
RunSteps = Callable[[TrainState, jax.Array, jax.Array, jax.Array, jax.Array], tuple[TrainState, jax.Array]]


def initial_state(variables: Variables, recipe: Recipe, steps_per_epoch: int) -> TrainState:
    """Returns the state before the first step."""
    params, statistics = split_variables({name: jnp.asarray(value) for name, value in variables.items()})
    trained = trained_part(params, statistics, recipe.freeze)
    averages = jax.tree.map(jnp.copy, trained) if recipe.ema_decay else ({}, {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        statistics=statistics,
        average_params=averages[0],
        average_statistics=averages[1],
        optimizer=make_optimizer(recipe, steps_per_epoch).init(trained[0]),
        loss_sum=jnp.zeros((), jnp.float32),
        num_hits=jnp.zeros((), jnp.int32),
        num_images=jnp.zeros((), jnp.int32),
    )


def trained_variables(state: TrainState) -> Arrays:
    """Returns the variables to evaluate and save: the averages, where kept."""
    return state.params | state.statistics | state.average_params | state.average_statistics


def epoch_order(seed: int, epoch: jax.Array, num_images: int) -> jax.Array:
    """Returns the order in which an epoch, counted from 0, takes the images: (num_images,) int32."""
    key, _ = jax.random.split(jax.random.key(seed))
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_images)


def steps_function(
    architecture: Architecture,
    recipe: Recipe,
    mesh: Mesh,
    *,
    num_images: int,
    dtype: Any,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    in_one_launch: bool,
) -> RunSteps:
    """Returns the function that runs steps, to be compiled with its state donated; `epoch_order` orders the images.

    The data axis cuts the batch. Gradients and batch statistics are over the whole batch and don't depend on the number
    of devices, up to rounding.

    Args:
      architecture: architecture of the network.
      recipe: how to train.
      mesh: mesh whose data axis cuts the batch.
      num_images: number of training images; images are (num_images, H, W, 3) uint8, labels (num_images,) int32.
      dtype: dtype of convolutions and activations.
      mean: mean of each channel, of pixels scaled to 0…1.
      std: standard deviation of each channel, of pixels scaled to 0…1.
      seed: seed of augmentation.
      in_one_launch: whether a launch loops over steps on the device; else it runs one step, whatever the number of
        steps. XLA:CPU computes convolutions inside a loop twenty times more slowly than outside.
    """
    steps_per_epoch = recipe.steps_per_epoch(num_images)
    optimizer = make_optimizer(recipe, steps_per_epoch)
    whole = recipe.freeze == "none"
    apply = network_function(architecture, dtype, training=whole, convolution=training_convolution(mesh))
    normalise = normaliser(mean, std)
    part_size = recipe.batch_size // recipe.accumulation_steps
    by_data = NamedSharding(mesh, P(None, DATA_AXIS))

    def loss_of(
        trained: Arrays, params: Arrays, statistics: Arrays, images: jax.Array, labels: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, tuple[Arrays, jax.Array]]:
        crop_key, flip_key, cutout_key, mixup_key = jax.random.split(key, 4)
        if recipe.crop_padding:
            images = random_crop(crop_key, images, recipe.crop_padding)
        if recipe.flip:
            images = random_flip(flip_key, images)
        x = normalise(images)
        if recipe.cutout_size:
            x = cutout(cutout_key, x, recipe.cutout_size)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, architecture.num_classes), recipe.label_smoothing)
        if recipe.mixup_alpha:
            x, targets = mixup(mixup_key, x, targets, recipe.mixup_alpha)
        logits, statistics = apply(params | trained, statistics, x)
        hits = jnp.sum(logits.argmax(axis=1) == labels, dtype=jnp.int32)
        return optax.softmax_cross_entropy(logits, targets).mean(), (statistics, hits)

    def gradients(
        params: Arrays, statistics: Arrays, images: jax.Array, labels: jax.Array, key: jax.Array
    ) -> tuple[Arrays, Arrays, jax.Array, jax.Array]:
        """Accumulates gradients, statistics, mean loss and hits over a batch in parts (parts, part_size, …)."""
        trained, _ = trained_part(params, statistics, recipe.freeze)

        def add_part(carry, part):
            total, statistics, loss_sum, hits_sum = carry
            (loss, (statistics, hits)), gradient = jax.value_and_grad(loss_of, has_aux=True)(
                trained, params, statistics, *part
            )
            return (jax.tree.map(jnp.add, total, gradient), statistics, loss_sum + loss, hits_sum + hits), None

        parts = recipe.accumulation_steps
        zeros = jax.tree.map(jnp.zeros_like, trained)
        start = (zeros, statistics, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))
        xs = (images, labels, jax.random.split(key, parts))
        if in_one_launch and parts > 1:
            carry, _ = lax.scan(add_part, start, xs)
        else:
            carry = start
            for part in range(parts):
                carry, _ = add_part(carry, jax.tree.map(lambda x, part=part: x[part], xs))
        total, statistics, loss_sum, hits = carry
        return jax.tree.map(lambda gradient: gradient / parts, total), statistics, loss_sum / parts, hits

    def one_step(state: TrainState, images: jax.Array, labels: jax.Array, order: jax.Array, key: jax.Array):
        position = state.step % steps_per_epoch
        indices = lax.dynamic_slice_in_dim(order, position * recipe.batch_size, recipe.batch_size)
        indices = lax.with_sharding_constraint(indices.reshape(recipe.accumulation_steps, part_size), by_data)
        gradient, statistics, loss, hits = gradients(
            state.params, state.statistics, images[indices], labels[indices], jax.random.fold_in(key, state.step)
        )
        trained, _ = trained_part(state.params, statistics, recipe.freeze)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, trained)
        params = state.params | cast(Arrays, optax.apply_updates(trained, updates))
        averages = state.average_params, state.average_statistics
        if recipe.ema_decay:
            # As in TensorFlow's ExponentialMovingAverage, so that the start has less weight.
            count = state.step.astype(jnp.float32)
            decay = jnp.minimum(recipe.ema_decay, (1 + count) / (10 + count))
            trained = trained_part(params, statistics, recipe.freeze)
            averages = cast(tuple[Arrays, Arrays], optax.incremental_update(trained, averages, 1 - decay))
        first = position == 0
        state = TrainState(
            step=state.step + 1,
            params=params,
            statistics=statistics,
            average_params=averages[0],
            average_statistics=averages[1],
            optimizer=optimizer_state,
            loss_sum=jnp.where(first, 0.0, state.loss_sum) + loss * recipe.batch_size,
            num_hits=jnp.where(first, 0, state.num_hits) + hits,
            num_images=jnp.where(first, 0, state.num_images) + recipe.batch_size,
        )
        return state, loss

    def run(state: TrainState, images: jax.Array, labels: jax.Array, order: jax.Array, num_steps: jax.Array):
        _, step_key = jax.random.split(jax.random.key(seed))
        if not in_one_launch:
            return one_step(state, images, labels, order, step_key)

        def goes_on(carry):
            done, _, loss = carry
            return (done < num_steps) & jnp.isfinite(loss)

        def step(carry):
            done, state, _ = carry
            return done + 1, *one_step(state, images, labels, order, step_key)

        start = (jnp.zeros((), jnp.int32), state, jnp.zeros((), jnp.float32))
        _, state, loss = lax.while_loop(goes_on, step, start)
        return state, loss

    return run


def logits_function(
    architecture: Architecture, mesh: Mesh, *, dtype: Any, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Arrays, jax.Array], jax.Array]:
    """Returns the inference function `(variables, images (N, H, W, 3) uint8) -> logits (N, classes) float32`."""
    apply = network_function(architecture, dtype, training=False, convolution=training_convolution(mesh))
    normalise = normaliser(mean, std)
    return lambda variables, images: apply(*split_variables(variables), normalise(images))[0]


def on_every_device(value: Any, mesh: Mesh) -> Any:
    """Replicates arrays over the devices of the mesh."""
    return jax.device_put(value, NamedSharding(mesh, P()))


def padded(images: np.ndarray, multiple: int) -> np.ndarray:
    """Appends black images up to a multiple of `multiple`."""
    missing = -len(images) % multiple
    return np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)]) if missing else images
