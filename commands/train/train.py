"""`--mode train`: trains a model on a data set by a recipe, and writes curves, accuracy and weights."""

import dataclasses
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from cambrian import models
from cambrian.commands.accuracy.accuracy import Accuracy, accuracy_text, write_accuracy
from cambrian.commands.accuracy.top_k import top_k
from cambrian.commands.configuration import Configuration
from cambrian.commands.console import progress_bar
from cambrian.commands.executables import resolve
from cambrian.commands.flags import Flags
from cambrian.commands.images import ModelImages
from cambrian.commands.images.arrays import load_arrays
from cambrian.commands.output import (
    CURVES,
    METRICS,
    MODEL,
    RESULTS,
    RUN_RESULTS,
    TRAINED_PRECISIONS,
    add_note,
    output_folder,
    reporting,
)
from cambrian.commands.train.curves import draw_curves, metrics_csv
from cambrian.commands.train.report import TrainingReport
from cambrian.commands.train.setup import Setup, open_images, recipe_of, set_up
from cambrian.engine.artifact.fingerprint import versions
from cambrian.engine.runtime.memory import device_memory_bytes
from cambrian.models.checkpoints.description import Description
from cambrian.models.training.checkpoints import Checkpoints, model_facts
from cambrian.models.training.loop import EpochMetrics, Progress, TrainingData, check_batch, evaluator, train
from cambrian.models.training.recipe import Recipe
from cambrian.sharding import OutOfMemory, make_mesh
from cambrian.sharding.host import acquire_devices, host
from cambrian.sharding.host.files import replace_file

CHECKPOINTS = "checkpoints"


def train_command(configuration: Configuration, flags: Flags) -> None:
    """Trains the configuration's model on the split `train` of its data, by the recipe of its config file.

    Writes to the output folder: report.json, metrics.csv, curves.png, the accuracy in both precisions, checkpoints, and
    the trained weights as a model folder. The same command with the same output folder resumes from the newest
    checkpoint.

    Raises:
      The exception that ended the training, after the report was written with the finished part, unless the request
        was refused before it had any.
    """
    recipe, recipe_notes = recipe_of(configuration, flags.config)
    # A step is launched alone, so all cores compute it; --threads only read images.
    devices, notes = acquire_devices(configuration.mesh.num_devices, configuration.platform)
    configuration = resolve(dataclasses.replace(configuration, platform=devices[0].platform))
    mesh = make_mesh(configuration.mesh, devices)
    check_batch(recipe, mesh)
    setup = set_up(configuration, recipe)
    images, test_images, setup, more_notes = open_images(configuration, recipe, setup)
    recipe.steps_per_epoch(len(images))
    with output_folder(configuration) as output_dir:
        report = TrainingReport(
            flags.reported | {"output_dir": str(output_dir.absolute())},
            versions(),
            model=setup.architecture.name,
            mesh=str(configuration.mesh),
            platform=configuration.platform,
            precision=configuration.precision,
            batch_size=recipe.batch_size,
            recipe=dataclasses.asdict(recipe),
            data=images.description,
            evaluated_on=test_images.description,
            num_images=len(images),
            weights=configuration.weights if setup.weights is None else str(setup.weights),
            checkpoints=str(output_dir / CHECKPOINTS),
        )
        # Results that come from checkpoints are replaced one by one, so that a repeat that fails loses none.
        removed = RUN_RESULTS if Checkpoints(output_dir / CHECKPOINTS).steps() else RESULTS
        with reporting(report, output_dir, "; the same command with this --output_dir resumes", removed) as start:
            for note in (*recipe_notes, *notes, *setup.notes, *more_notes):
                add_note(note, report)
            _train(configuration, recipe, setup, images, test_images, mesh, output_dir, report, start)


def _train(
    configuration: Configuration,
    recipe: Recipe,
    setup: Setup,
    images: ModelImages,
    test_images: ModelImages,
    mesh: Mesh,
    output_dir: Path,
    report: TrainingReport,
    start: Callable[[], None],
) -> None:
    data = TrainingData(*load_arrays(images, configuration.threads), *load_arrays(test_images, configuration.threads))
    _check_memory(data, setup.variables, mesh, configuration.device_memory_limit_bytes)
    model, architecture = setup.model, setup.architecture
    description, preprocessing = Description(model.preprocessing, model.labels), model.preprocessing
    facts = model_facts(architecture, description) | {
        "recipe": dataclasses.asdict(recipe),
        "precision": configuration.precision,
        "mesh": str(configuration.mesh),
        "seed": configuration.seed,
        "data_sha256": _digest(data.images, data.labels, data.test_images, data.test_labels),
        "start_sha256": _digest(*setup.variables.values()),
    }
    checkpoints = Checkpoints(output_dir / CHECKPOINTS)
    for note in checkpoints.damaged():
        add_note(note, report)
    num_steps = recipe.epochs * recipe.steps_per_epoch(len(data.images))
    report.num_steps = num_steps
    is_finished = checkpoints.latest_step() == num_steps
    epochs: list[dict[str, Any]] = []
    began = time.perf_counter()
    with progress_bar(num_steps * recipe.batch_size, "training") as show_progress:

        def on_progress(progress: Progress) -> None:
            start()
            show_progress(progress.step * recipe.batch_size)
            report.images_per_second, report.host_changes = progress.images_per_second, host.changes

        def on_epoch(metrics: EpochMetrics) -> None:
            start()
            show_progress(metrics.step * recipe.batch_size)
            epochs.append(dataclasses.asdict(metrics))
            replace_file(output_dir / METRICS, metrics_csv(epochs))
            if is_finished:
                return
            tested = "" if metrics.test_top1 is None else f", evaluation top-1 {metrics.test_top1:.2%}"
            print(
                f"epoch {metrics.epoch}/{recipe.epochs}: loss {metrics.train_loss:.4f}, "
                f"accuracy {metrics.train_accuracy:.2%}{tested}, {metrics.images_per_second:.0f} images/s"
            )

        variables = train(
            architecture,
            setup.variables,
            recipe,
            data,
            mesh,
            precision=configuration.precision,
            mean=preprocessing.mean,
            std=preprocessing.std,
            seed=configuration.seed,
            checkpoints=checkpoints,
            facts=facts,
            on_progress=on_progress,
            on_epoch=on_epoch,
        )
    report.wall_ms = 1e3 * (time.perf_counter() - began)
    if is_finished:
        add_note(
            f"the training in {output_dir} was finished: nothing was trained; another --output_dir starts a new one",
            report,
        )
    _export(models.Weights(architecture, variables, description), output_dir)
    report.trained_weights = str(output_dir / MODEL)
    draw_curves(epochs, f"{architecture.name} on {report.data}", output_dir / CURVES)
    for precision in TRAINED_PRECISIONS:
        evaluate = evaluator(architecture, mesh, data.test_images, precision, preprocessing.mean, preprocessing.std)
        accuracy, confusion = _accuracy(evaluate(variables), data.test_labels, model.labels)
        report.accuracy[precision] = accuracy.to_json()
        title = f"{architecture.name}, {precision}: top-1 {accuracy.top1:.2%} of {accuracy.num_images} images"
        write_accuracy(output_dir, accuracy, confusion, title, suffix=f"_{precision}")
        print(f"{precision}: {accuracy_text(accuracy)}")
    print(
        f"report, curves and confusion matrices in {output_dir}; --weights {output_dir / MODEL} runs the trained model"
    )


def _export(weights: models.Weights, output_dir: Path) -> None:
    """Writes the model folder, each file in one step."""
    with tempfile.TemporaryDirectory(prefix=".", dir=output_dir) as folder:
        models.export_hugging_face(weights, Path(folder))
        (output_dir / MODEL).mkdir(exist_ok=True)
        for file in Path(folder).iterdir():
            os.replace(file, output_dir / MODEL / file.name)


def _accuracy(logits: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> tuple[Accuracy, np.ndarray]:
    classes, _ = top_k(logits, 5)
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (labels, classes[:, 0]), 1)
    return Accuracy.of(confusion, int((classes == labels[:, None]).sum()), names), confusion


def _check_memory(data: TrainingData, variables: dict[str, np.ndarray], mesh: Mesh, limit_bytes: int | None) -> None:
    """Raises OutOfMemory if a device can't hold images, weights and optimizer; activations come on top."""
    images = data.images.nbytes + data.test_images.nbytes
    # Weights, gradients, the optimizer's state and the average.
    needed = images + 4 * sum(value.nbytes for value in variables.values())
    allowed = device_memory_bytes(list(mesh.devices.flat)) if limit_bytes is None else limit_bytes
    if needed > allowed:
        raise OutOfMemory(
            f"a device must hold all images ({images / 2**20:.0f} MiB), weights and optimizer, in total "
            f"{needed / 2**20:.0f} MiB without activations, got a limit of {allowed / 2**20:.0f} MiB"
        )


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str((array.shape, array.dtype)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
