"""The start of a training: model, variables, labelled images, and a head for their classes."""

import dataclasses
from pathlib import Path

import numpy as np

from cambrian import models
from cambrian.commands.config_file import ConfigFile
from cambrian.commands.configuration import Configuration, ModelConfig
from cambrian.commands.images import ImageSource, ModelImages, choose_data, for_model, open_source
from cambrian.commands.images.labels import find_labels
from cambrian.commands.model import model_of_weights, preprocessing_notes, weights_path, with_image_size
from cambrian.models.resnet.variables import initial_variables
from cambrian.models.training.recipe import Recipe
from cambrian.sharding import UsageError

TRAIN_SPLIT = "train"
_HEAD = ("fc.kernel", "fc.bias")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """A model to train.

    Attributes:
      labels: class names in the order of the logits of `variables`; empty if unknown.
      weights: file or folder of the weights to start from; None for random ones.
      notes: deviations from the request.
    """

    model: ModelConfig
    architecture: models.Architecture
    variables: dict[str, np.ndarray]
    labels: tuple[str, ...]
    weights: Path | None
    notes: tuple[str, ...]


def recipe_of(configuration: Configuration, config: ConfigFile) -> tuple[Recipe, list[str]]:
    """Returns the recipe of a config file, or the default one, with the flags that override it, and notes.

    Raises:
      UsageError: if `RECIPE` is something else, or a flag is out of range.
    """
    recipe, notes = config.recipe, []
    if recipe is None:
        recipe = Recipe()
        notes.append(f"no RECIPE in {config.path.name}: training by the default one, {recipe.epochs} epochs")
    if not isinstance(recipe, Recipe):
        raise UsageError(f"{config.path} must define RECIPE, a Recipe, got {type(recipe).__name__}")
    given = {"batch_size": configuration.batch_size, "freeze": configuration.freeze}
    return dataclasses.replace(recipe, **{name: value for name, value in given.items() if value}), notes


def set_up(configuration: Configuration, recipe: Recipe) -> Setup:
    """Returns model and variables, with the head of the weights or the configuration.

    Raises:
      UsageError: if the weights can't be read, or contradict the configuration; if a frozen backbone would be random.
    """
    model = with_image_size(configuration.model, configuration)
    # A whole network starts from random weights unless told otherwise, a frozen backbone from the shipped ones.
    from_random = configuration.weights == "auto" and recipe.freeze == "none"
    path = None if from_random else weights_path(configuration)
    if path is None:
        if recipe.freeze != "none":
            raise UsageError(f"freeze {recipe.freeze} requires trained weights, got --weights {configuration.weights}")
        architecture = models.Architecture.resnet(model.depth, model.stem, model.num_classes)
        return Setup(model, architecture, initial_variables(architecture, configuration.seed), model.labels, None, ())
    given = models.read_weights(path)
    told, labels = given.told(), given.description.labels
    if configuration.explicit_config:
        needed = models.Architecture.resnet(model.depth, model.stem, given.architecture.num_classes)
        if given.architecture != needed:
            raise UsageError(
                f"--config needs weights of {needed.name} with the {needed.stem} stem, got {given.architecture.name} "
                f"with the {given.architecture.stem} stem in {path}"
            )
        if not labels and given.architecture.num_classes == model.num_classes:
            labels = model.labels
        # The data decides the head.
        told = {name: value for name, value in told.items() if name not in ("num_classes", "labels")}
    model = model_of_weights(configuration, told)
    notes = (*given.notes, *preprocessing_notes(configuration, told, model))
    return Setup(with_image_size(model, configuration), given.architecture, given.variables, labels, path, notes)


def open_images(
    configuration: Configuration, recipe: Recipe, setup: Setup
) -> tuple[ModelImages, ModelImages, Setup, list[str]]:
    """Returns training and evaluation images, the setup with a head for their classes, and notes.

    Raises:
      UsageError: if the images have no labels, or their classes differ from those of `--config` and the backbone isn't
        frozen.
    """
    model = setup.model

    data, data_notes = configuration.data, []
    if data == "auto":
        data, data_notes = choose_data(model.labels, model.num_classes)

    def opened(split: str, num_images: int, splits_optional: bool = False) -> tuple[ImageSource, list[str]]:
        return open_source(
            data, split=split, num_images=num_images, seed=configuration.seed, splits_optional=splits_optional
        )

    source, notes = opened(TRAIN_SPLIT, configuration.num_images, splits_optional=True)
    names = source.class_names
    if names is None:
        raise UsageError(
            f"training needs labelled images, --data cifar10 or a folder of class folders, got {source.description}"
        )
    if _positions(names, model.labels) is not None:
        names = model.labels
    elif configuration.explicit_config and model.labels and recipe.freeze == "none":
        raise UsageError(
            f"--config needs the classes {_listed(model.labels)}, got {_listed(names)} in {configuration.data}"
        )
    images, _ = for_model(source, model.preprocessing, names, len(names))
    test_source, _ = opened(configuration.split, 0)
    if 0 < configuration.num_images < len(test_source):
        test_source, _ = opened(configuration.split, configuration.num_images)
    test_images, _ = for_model(test_source, model.preprocessing, names, len(names))
    notes = [*data_notes, *notes]
    if test_images.class_names is None:
        raise UsageError(f"the split {configuration.split} must have labelled images, got {test_source.description}")
    if test_source.description == source.description:
        notes.append("evaluated on the training images: there is no other split, or --split names it")
    architecture = dataclasses.replace(setup.architecture, num_classes=len(names))
    order = _positions(names, setup.labels)
    if order is None:
        start = initial_variables(architecture, configuration.seed)
        head = {name: start[name] for name in _HEAD}
        if setup.weights is not None:
            notes.append(f"the head starts anew, for the {len(names)} classes of the data: {_listed(names)}")
    else:
        head = {name: setup.variables[name][..., order] for name in _HEAD}
    model = dataclasses.replace(model, num_classes=len(names), labels=names)
    setup = dataclasses.replace(
        setup, architecture=architecture, variables=setup.variables | head, labels=names, model=model
    )
    return images, test_images, setup, notes


def _positions(names: tuple[str, ...], labels: tuple[str, ...]) -> list[int] | None:
    """The position of each name among the labels; None unless the labels are those of exactly these names."""
    found = [position for position in find_labels(names, labels) if position is not None]
    return found if len(names) == len(labels) == len(set(found)) else None


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
