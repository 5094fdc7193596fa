"""The training loop on the host: runs steps on the device, from the start or from a checkpoint.

Each call of the compiled steps takes about a second. Between calls, the host reports progress, classifies the
evaluation images after an epoch and writes checkpoints. Results don't depend on the number of steps per call (see
`models.training.steps`).
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.variables import Variables
from cambrian.models.training.checkpoints import Checkpoints
from cambrian.models.training.optimizer import learning_rate_schedule
from cambrian.models.training.recipe import Recipe
from cambrian.models.training.steps import (
    TrainState,
    epoch_order,
    initial_state,
    logits_function,
    on_every_device,
    padded,
    steps_function,
    trained_variables,
)
from cambrian.sharding import DATA_AXIS, UsageError, mesh_shape
from cambrian.sharding.host import without_compilation_cache

_SECONDS_PER_CALL = 1.0  # short enough to show progress, long enough that the host's time doesn't matter
_EVALUATION_BATCH = 256


class TrainingDiverged(RuntimeError):
    """The loss or the weights became infinite or NaN."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Labelled images (N, H, W, 3) uint8 with labels (N,) int32, for training and, in `test_*`, for evaluation."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a training: means over the augmented images of the epoch so far, and the speed of the last call."""

    step: int
    num_steps: int
    loss: float
    accuracy: float
    images_per_second: float


@dataclasses.dataclass(frozen=True, slots=True)
class EpochMetrics:
    """Metrics of a finished epoch, counted from 1.

    `train_*` are means over its augmented images, while the weights change. `test_*` are of the trained weights after
    the epoch, None if it wasn't evaluated. `images_per_second` excludes evaluation and checkpoints.
    """

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    test_loss: float | None
    test_top1: float | None
    images_per_second: float


def train(
    architecture: Architecture,
    variables: Variables,
    recipe: Recipe,
    data: TrainingData,
    mesh: Mesh,
    *,
    precision: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    checkpoints: Checkpoints,
    facts: dict[str, Any],
    on_progress: Callable[[Progress], None],
    on_epoch: Callable[[EpochMetrics], None],
) -> dict[str, np.ndarray]:
    """Trains a network, resuming from the newest checkpoint if there is one.

    Args:
      architecture: architecture of the network.
      variables: initial variables (see `models.resnet.variables`).
      recipe: how to train.
      data: images to train and to evaluate on.
      mesh: mesh whose data axis cuts the batch; its model axis must be 1.
      precision: dtype of convolutions and activations, float32 or bfloat16; weights and optimizer are float32.
      mean: mean of each channel, of pixels scaled to 0…1.
      std: standard deviation of each channel, of pixels scaled to 0…1.
      seed: seed of shuffling and augmentation.
      checkpoints: checkpoints to resume from and to write.
      facts: JSON-compatible facts stored with each checkpoint; a checkpoint with other facts isn't resumed.
      on_progress: called after each call of the steps.
      on_epoch: called after each epoch, and on resuming for each epoch finished before.

    Returns:
      The trained variables on the host: the averages if the recipe keeps them.

    Raises:
      UsageError: if mesh, batch and accumulation don't fit, or the newest checkpoint is of another training.
      TrainingDiverged: if the loss isn't finite, or the trained weights or their logits aren't.
    """
    check_batch(recipe, mesh)
    steps_per_epoch = recipe.steps_per_epoch(len(data.images))
    num_steps = recipe.epochs * steps_per_epoch
    facts = json.loads(json.dumps(facts))  # in the form in which they are read back
    replicated = NamedSharding(mesh, P())
    start = jax.jit(lambda values: initial_state(values, recipe, steps_per_epoch), out_shardings=replicated)
    state: TrainState = start(dict(variables))
    history: list[EpochMetrics] = []
    if (latest := checkpoints.latest_step()) is not None:
        found = checkpoints.facts(latest)
        history = [EpochMetrics(**entry) for entry in found.pop("epochs")]
        _check_same(facts, found, checkpoints)
        state = checkpoints.restore(latest, state)
        for entry in history:
            on_epoch(entry)
    step = int(state.step)
    images, labels = on_every_device((data.images, data.labels), mesh)
    evaluate = evaluator(architecture, mesh, data.test_images, precision, mean, std)
    schedule = learning_rate_schedule(recipe, steps_per_epoch)
    order_of = jax.jit(lambda epoch: epoch_order(seed, epoch, len(images)), out_shardings=replicated)
    run = order = None
    call_steps, last_saved, epoch_seconds, epoch_images = 1, time.monotonic(), 0.0, 0
    while step < num_steps:
        if order is None or step % steps_per_epoch == 0:
            order = order_of(np.int32(step // steps_per_epoch))  # sorts, which may take as long as a step
        if run is None:  # compiled only if steps are left
            steps = steps_function(
                architecture, recipe, mesh,
                num_images=len(images), dtype=jnp.dtype(precision), mean=mean, std=std, seed=seed,
                in_one_launch=mesh.devices.flat[0].platform != "cpu",
            )  # fmt: skip
            count = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
            jitted = jax.jit(steps, donate_argnums=0, out_shardings=replicated)
            with without_compilation_cache():  # which can't hold the calls of oneDNN
                run = jitted.lower(state, images, labels, order, count).compile()
        planned = min(call_steps, steps_per_epoch - step % steps_per_epoch)
        began = time.perf_counter()
        state, last_loss = run(state, images, labels, order, jax.device_put(np.int32(planned), replicated))
        loss, done = float(last_loss), int(state.step) - step
        seconds = time.perf_counter() - began
        step += done
        if not math.isfinite(loss):
            raise TrainingDiverged(f"the loss must stay finite, got {loss} at {_place(step, num_steps, schedule)}")
        epoch_seconds, epoch_images = epoch_seconds + seconds, epoch_images + done * recipe.batch_size
        call_steps = max(1, min(2 * call_steps, round(done * _SECONDS_PER_CALL / seconds)))
        loss_mean, accuracy = float(state.loss_sum) / int(state.num_images), int(state.num_hits) / int(state.num_images)
        on_progress(Progress(step, num_steps, loss_mean, accuracy, done * recipe.batch_size / seconds))
        if step % steps_per_epoch == 0:
            epoch = step // steps_per_epoch
            test_loss = test_top1 = None
            if epoch % recipe.evaluate_every_epochs == 0 or step == num_steps:
                variables = trained_variables(state)
                logits = evaluate(variables)
                if step == num_steps and not all(np.isfinite(value).all() for value in (logits, *variables.values())):
                    # The loss is of before the last step, which may be the one that went too far.
                    raise TrainingDiverged(
                        f"the trained weights and their logits must be finite, got NaN or infinity at "
                        f"{_place(step, num_steps, schedule)}"
                    )
                test_loss = mean_cross_entropy(logits, data.test_labels)
                test_top1 = float((logits.argmax(axis=1) == data.test_labels).mean())
            rate = float(schedule(step - 1))
            speed = epoch_images / epoch_seconds
            history.append(EpochMetrics(epoch, step, rate, loss_mean, accuracy, test_loss, test_top1, speed))
            on_epoch(history[-1])
            epoch_seconds, epoch_images = 0.0, 0
        if step == num_steps or time.monotonic() - last_saved >= recipe.checkpoint_every_s:
            checkpoints.save(state, facts | {"epochs": [dataclasses.asdict(entry) for entry in history]})
            last_saved = time.monotonic()
    return {name: np.asarray(value) for name, value in trained_variables(state).items()}


def evaluator(
    architecture: Architecture,
    mesh: Mesh,
    images: np.ndarray,
    precision: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Callable[[Mapping[str, Any]], np.ndarray]:
    """Returns a function from variables to the logits (N, classes) float32 of `images`, which stay on the devices."""
    data = mesh_shape(mesh).data
    num_batches = -(-len(images) // _EVALUATION_BATCH)
    batch_size = -(-len(images) // (num_batches * data)) * data
    by_data = NamedSharding(mesh, P(DATA_AXIS))
    whole = padded(images, batch_size)
    batches = [jax.device_put(whole[at : at + batch_size], by_data) for at in range(0, len(images), batch_size)]
    logits_of = jax.jit(logits_function(architecture, mesh, dtype=jnp.dtype(precision), mean=mean, std=std))

    def evaluate(variables: Mapping[str, Any]) -> np.ndarray:
        variables = on_every_device(dict(variables), mesh)
        with without_compilation_cache():  # which can't hold the calls of oneDNN
            logits = [logits_of(variables, batch) for batch in batches]  # launches all before fetching the first
        return np.concatenate(jax.device_get(logits))[: len(images)]

    return evaluate


def check_batch(recipe: Recipe, mesh: Mesh) -> None:
    """Raises UsageError unless the model axis is 1 and the data axis divides each accumulated part of a batch."""
    shape = mesh_shape(mesh)
    if shape.model != 1:
        raise UsageError(f"the mesh must be 1xDATA for training, got {shape}")
    if recipe.batch_size % (recipe.accumulation_steps * shape.data):
        raise UsageError(
            f"batch_size must be a multiple of {recipe.accumulation_steps} accumulation steps × {shape.data} devices, "
            f"got {recipe.batch_size}"
        )


def mean_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of -log p(label), for logits (N, classes) and labels (N,); NaN where logits aren't finite."""
    with np.errstate(invalid="ignore"):
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    return float((log_sums - shifted[np.arange(len(labels)), labels]).mean())


def _place(step: int, num_steps: int, schedule: Callable[[Any], jax.Array]) -> str:
    """Where a training diverged, and what helps."""
    return (
        f"step {step} of {num_steps} with a learning rate of {float(schedule(step - 1)):.3g}: lower learning_rate or "
        "lengthen warmup_epochs in the recipe"
    )


def _check_same(wanted: dict[str, Any], found: dict[str, Any], checkpoints: Checkpoints) -> None:
    wanted, found = _flat(wanted), _flat(found)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise UsageError(
                f"a training must resume from its own checkpoint, with {name} {wanted.get(name)!r:.200}, got "
                f"{found.get(name)!r:.200} in {checkpoints.folder}: choose another output_dir"
            )


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts with those of a nested dict under `NAME.KEY`, so that a message can name one setting of a recipe."""
    flat = {}
    for name, value in facts.items():
        flat |= {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
    return flat
