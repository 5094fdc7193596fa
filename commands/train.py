"""What main.py does for `--mode train`: brings data, model and recipe together, and writes what comes of them."""

import dataclasses
import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

import engine.flags
import models
from engine.accuracy import Accuracy
from engine.accuracy_files import write_accuracy
from engine.configuration import Configuration, ModelConfig, parse_bytes
from engine.curves import draw_curves, metrics_csv
from engine.files import replace_file
from engine.inputs import ImageSource, open_source
from engine.inputs.arrays import load_arrays
from engine.inputs.labels import match_labels
from engine.memory import device_memory_bytes, peak_host_memory_bytes
from engine.obtain import resolve
from engine.run import failure, make_output_dir
from engine.table import share_with_interval
from engine.topk import top_k
from engine.training_report import TrainingReport
from engine.versions import versions
from engine.weights_model import model_of_weights
from models.training.checkpoints import Checkpoints, model_facts
from models.training.loop import EpochMetrics, Progress, TrainingData, check_batch, evaluator, train
from models.training.recipe import Recipe
from models.variables import initial_variables
from sharding import OutOfMemory, UsageError, acquire_devices, make_mesh

TRAIN_SPLIT = "train"
METRICS, CURVES, CHECKPOINTS, MODEL = "metrics.csv", "curves.png", "checkpoints", "model"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Setup:
    """What a training starts from, and what is said of it."""

    model: ModelConfig
    architecture: models.Architecture
    variables: dict[str, np.ndarray]
    notes: tuple[str, ...]


def train_configuration(configuration: Configuration, flags: dict[str, Any]) -> tuple[TrainingReport, Path]:
    """Trains the configuration's model, by the recipe of its config file, on the split `train` of its data.

    In the output folder stand report.json, metrics.csv, curves.png, the accuracy's files for both precisions, the
    checkpoints, and the trained weights as a model folder. The same command with the same output folder goes on from
    the newest checkpoint.

    Args:
      flags: every effective flag, for the report.

    Raises:
      Whatever ended the training, after the report was written with what had been finished.
    """
    report = TrainingReport(flags, versions())
    recipe, recipe_notes = _recipe(flags["config"])
    if flags["batch_size"]:
        recipe = dataclasses.replace(recipe, batch_size=flags["batch_size"])
    devices, notes = acquire_devices(configuration.mesh.num_devices, configuration.platform)
    configuration = resolve(configuration, devices)
    mesh = make_mesh(configuration.mesh, devices)
    check_batch(recipe, mesh)
    setup = _set_up(configuration)
    source, test_source, setup, more_notes = _open_sources(configuration, setup)
    recipe.steps_per_epoch(len(source))
    output_dir = make_output_dir(configuration)
    flags["output_dir"] = str(output_dir)
    report.model, report.mesh, report.platform = setup.architecture.name, str(configuration.mesh), devices[0].platform
    report.precision, report.batch_size, report.recipe = (
        configuration.precision,
        recipe.batch_size,
        dataclasses.asdict(recipe),
    )
    report.data, report.evaluated_on, report.num_images = source.description, test_source.description, len(source)
    report.weights, report.checkpoints = configuration.weights, str(output_dir / CHECKPOINTS)
    try:
        for note in (*recipe_notes, *notes, *setup.notes, *more_notes):
            print(f"note: {note}", file=sys.stderr, flush=True)
            report.notes.append(note)
        _train(configuration, recipe, setup, source, test_source, mesh, output_dir, report)
        report.status = "ok"
    except BaseException as error:
        report.status, report.failure_reason = failure(error)
        print(f"what is finished stands in {output_dir}: the same with --output_dir goes on", file=sys.stderr)
        raise
    finally:
        report.peak_host_memory_bytes = peak_host_memory_bytes()
        report.write(output_dir)
    return report, output_dir


def _recipe(config: str) -> tuple[Recipe, list[str]]:
    path, names = engine.flags.read_config_file(config or engine.flags.DEFAULT_CONFIG)
    if "RECIPE" not in names:
        recipe = Recipe()
        return recipe, [f"no RECIPE in {path.name}: training by the default one, {recipe.epochs} epochs"]
    recipe = names["RECIPE"]
    if not isinstance(recipe, Recipe):
        raise UsageError(f"{path} must define RECIPE, a Recipe, got {type(recipe).__name__}")
    return recipe, []


def _set_up(configuration: Configuration) -> _Setup:
    """Model and variables, whose head is still that of the weights or the configuration."""
    model = configuration.model
    if configuration.weights in ("auto", "random"):
        architecture = models.Architecture.resnet(model.depth, model.stem, model.num_classes)
        return _Setup(model, architecture, initial_variables(architecture, configuration.seed), ())
    given = models.read_weights(configuration.weights)
    told = given.told()
    if configuration.explicit_config:
        needed = models.Architecture.resnet(model.depth, model.stem, given.architecture.num_classes)
        if given.architecture != needed:
            raise UsageError(
                f"--config needs weights of {needed.name} with the {needed.stem} stem, got {given.architecture.name} "
                f"with the {given.architecture.stem} stem in {configuration.weights}"
            )
        # The data decide on the head.
        told = {name: value for name, value in told.items() if name not in ("num_classes", "labels")}
    return _Setup(model_of_weights(configuration, told), given.architecture, given.variables, given.notes)


def _open_sources(configuration: Configuration, setup: _Setup) -> tuple[ImageSource, ImageSource, _Setup, list[str]]:
    """Training and evaluation images, and the setup with a head for their classes."""
    model = setup.model
    image_size = configuration.image_size or model.image_size

    def opened(split: str, num_images: int, labels: tuple[str, ...]) -> tuple[ImageSource, list[str]]:
        return open_source(
            configuration.data,
            split=split,
            num_images=num_images,
            image_size=image_size,
            crop_fraction=model.crop_fraction,
            labels=labels,
            seed=configuration.seed,
            interpolation=model.interpolation,
        )

    source, notes = opened(TRAIN_SPLIT, configuration.num_images, ())
    names = source.class_names
    if names is None or not source.has_labels:
        raise UsageError(
            f"training needs labelled images, --data cifar10 or a folder of class folders, got {source.description}"
        )
    same = len(names) == len(model.labels) and not match_labels(names, model.labels)[2]
    if same and names != model.labels:  # in the order of the logits that there are
        names = model.labels
        source, notes = opened(TRAIN_SPLIT, configuration.num_images, names)
    elif not same and configuration.explicit_config and model.labels:
        raise UsageError(
            f"--config needs the classes {_listed(model.labels)}, got {_listed(names)} in {configuration.data}"
        )
    test_source, _ = opened(configuration.split, 0, names)
    if test_source.class_names != names:
        raise UsageError(
            f"the split {configuration.split} needs the classes of the split {TRAIN_SPLIT}, {_listed(names)}, "
            f"got {_listed(test_source.class_names or ())}"
        )
    if 0 < configuration.num_images < len(test_source):
        test_source, _ = opened(configuration.split, configuration.num_images, names)
    if test_source.description == source.description:
        notes.append("evaluated on the training images: there is no other split, or --split names it")
    if configuration.weights not in ("auto", "random") and not same:
        notes.append(f"new head for the {len(names)} classes of the data")
    if not same:
        architecture = dataclasses.replace(setup.architecture, num_classes=len(names))
        head = initial_variables(architecture, configuration.seed)
        variables = setup.variables | {name: value for name, value in head.items() if name.startswith("fc.")}
        model = dataclasses.replace(model, num_classes=len(names), labels=names)
        setup = dataclasses.replace(setup, architecture=architecture, variables=variables, model=model)
    return source, test_source, setup, notes


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _train(
    configuration: Configuration,
    recipe: Recipe,
    setup: _Setup,
    source: ImageSource,
    test_source: ImageSource,
    mesh: Mesh,
    output_dir: Path,
    report: TrainingReport,
) -> None:
    data = TrainingData(*load_arrays(source, configuration.threads), *load_arrays(test_source, configuration.threads))
    _check_memory(data, setup.variables, mesh, configuration.device_memory_limit)
    model, architecture = setup.model, setup.architecture
    image_size = data.images.shape[1]
    description = models.Description(
        image_size, model.crop_fraction, model.interpolation, model.mean, model.std, model.labels
    )
    facts = model_facts(architecture, description) | {
        "recipe": dataclasses.asdict(recipe),
        "precision": configuration.precision,
        "mesh": str(configuration.mesh),
        "seed": configuration.seed,
        "data_sha256": _digest(data.images, data.labels, data.test_images, data.test_labels),
        "start_sha256": _digest(*setup.variables.values()),
    }
    num_steps = recipe.epochs * recipe.steps_per_epoch(len(data.images))
    report.num_steps = num_steps
    epochs: list[dict[str, Any]] = []
    began = time.perf_counter()
    with tqdm(total=num_steps * recipe.batch_size, unit="image", unit_scale=True, disable=None, leave=False) as bar:

        def on_progress(progress: Progress) -> None:
            bar.set_postfix(loss=f"{progress.loss:.3f}", accuracy=f"{progress.accuracy:.1%}", refresh=False)
            bar.update(progress.step * recipe.batch_size - bar.n)
            report.images_per_second = progress.images_per_second

        def on_epoch(metrics: EpochMetrics) -> None:
            if report.images_per_second is None:  # an epoch from before a stop, whose time is not of this process
                bar.initial = bar.n = bar.last_print_n = metrics.step * recipe.batch_size
            epochs.append(dataclasses.asdict(metrics))
            replace_file(output_dir / METRICS, metrics_csv(epochs))
            tested = "" if metrics.test_top1 is None else f", evaluation top-1 {metrics.test_top1:.2%}"
            bar.write(
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
            mean=model.mean,
            std=model.std,
            seed=configuration.seed,
            checkpoints=Checkpoints(output_dir / CHECKPOINTS),
            facts=facts,
            on_progress=on_progress,
            on_epoch=on_epoch,
        )
    report.wall_ms = 1e3 * (time.perf_counter() - began)
    draw_curves(epochs, f"{architecture.name} on {report.data}", output_dir / CURVES)
    for precision in ("float32", "bfloat16"):
        evaluate = evaluator(architecture, mesh, data.test_images, precision, model.mean, model.std)
        accuracy, confusion = _accuracy(evaluate(variables), data.test_labels, model.labels)
        report.accuracy[precision] = accuracy.to_json()
        title = f"{architecture.name}, {precision}: top-1 {accuracy.top1:.2%} of {accuracy.num_images} images"
        write_accuracy(output_dir, accuracy, confusion, title, suffix=f"_{precision}")
        shares = (
            ("top-1", accuracy.top1, accuracy.top1_interval_95),
            ("top-5", accuracy.top5, accuracy.top5_interval_95),
        )
        print(f"{precision}: {', '.join(share_with_interval(*share) for share in shares)}")
    models.export_hugging_face(models.Weights(architecture, variables, description), output_dir / MODEL)
    report.trained_weights = str(output_dir / MODEL)
    print(
        f"report, curves and confusion matrices in {output_dir}; --weights {output_dir / MODEL} runs the trained model"
    )


def _accuracy(logits: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> tuple[Accuracy, np.ndarray]:
    classes, _ = top_k(logits, 5)
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (labels, classes[:, 0]), 1)
    return Accuracy.of(confusion, int((classes == labels[:, None]).sum()), names), confusion


def _check_memory(data: TrainingData, variables: dict[str, np.ndarray], mesh: Mesh, limit: str) -> None:
    """Raises OutOfMemory if what is sure to lie on each device is more than it has; activations come on top."""
    images = data.images.nbytes + data.test_images.nbytes
    # Weights, gradients, the optimizer's state and the average.
    needed = images + 4 * sum(value.nbytes for value in variables.values())
    allowed = parse_bytes(limit) if limit else device_memory_bytes(list(mesh.devices.flat))
    if needed > allowed:
        raise OutOfMemory(
            f"a device must hold all images ({images / 2**20:.0f} MiB), weights and optimizer, together "
            f"{needed / 2**20:.0f} MiB without activations, got a limit of {allowed / 2**20:.0f} MiB"
        )


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str((array.shape, array.dtype)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
