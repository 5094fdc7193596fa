"""The start of a training: model, variables, labelled images, and a head for their classes."""

import dataclasses

import numpy as np

from cambrian import models
from cambrian.commands.config_file import ConfigFile
from cambrian.commands.configuration import Configuration, ModelConfig
from cambrian.commands.images import ImageSource, ModelImages, choose_data, for_model, open_source
from cambrian.commands.images.labels import find_labels
from cambrian.commands.model import model_of_weights, with_image_size
from cambrian.models.resnet.variables import initial_variables
from cambrian.models.training.recipe import Recipe
from cambrian.sharding import UsageError

TRAIN_SPLIT = "train"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """A model to train.

    Attributes:
      notes: deviations from the request.
    """

    model: ModelConfig
    architecture: models.Architecture
    variables: dict[str, np.ndarray]
    notes: tuple[str, ...]


def recipe_of(config: ConfigFile) -> tuple[Recipe, list[str]]:
    """The recipe of a config file, or the default one, and notes.

    Raises:
      UsageError: if `RECIPE` is something else.
    """
    if config.recipe is None:
        recipe = Recipe()
        return recipe, [f"no RECIPE in {config.path.name}: training by the default one, {recipe.epochs} epochs"]
    if not isinstance(config.recipe, Recipe):
        raise UsageError(f"{config.path} must define RECIPE, a Recipe, got {type(config.recipe).__name__}")
    return config.recipe, []


def set_up(configuration: Configuration) -> Setup:
    """Model and variables; the head is still the one of the weights or the configuration."""
    model = with_image_size(configuration.model, configuration)
    if configuration.weights in ("auto", "random"):
        architecture = models.Architecture.resnet(model.depth, model.stem, model.num_classes)
        return Setup(model, architecture, initial_variables(architecture, configuration.seed), ())
    given = models.read_weights(configuration.weights)
    told = given.told()
    if configuration.explicit_config:
        needed = models.Architecture.resnet(model.depth, model.stem, given.architecture.num_classes)
        if given.architecture != needed:
            raise UsageError(
                f"--config needs weights of {needed.name} with the {needed.stem} stem, got {given.architecture.name} "
                f"with the {given.architecture.stem} stem in {configuration.weights}"
            )
        # The data decides the head.
        told = {name: value for name, value in told.items() if name not in ("num_classes", "labels")}
    model = with_image_size(model_of_weights(configuration, told), configuration)
    return Setup(model, given.architecture, given.variables, given.notes)


def open_images(configuration: Configuration, setup: Setup) -> tuple[ModelImages, ModelImages, Setup, list[str]]:
    """Training and evaluation images, and the setup with a head for their classes.

    Raises:
      UsageError: if the images have no labels, or other classes than the model that the user named.
    """
    model = setup.model

    data, data_notes = configuration.data, []
    if data == "auto":
        data, data_notes = choose_data(model.labels, model.num_classes)

    def opened(split: str, num_images: int) -> tuple[ImageSource, list[str]]:
        return open_source(data, split=split, num_images=num_images, seed=configuration.seed)

    source, notes = opened(TRAIN_SPLIT, configuration.num_images)
    names = source.class_names
    if names is None:
        raise UsageError(
            f"training needs labelled images, --data cifar10 or a folder of class folders, got {source.description}"
        )
    found = find_labels(names, model.labels)
    same = len(names) == len(model.labels) == len(set(found)) and None not in found
    if same:
        names = model.labels  # in the order of the logits that there are
    elif configuration.explicit_config and model.labels:
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
    if configuration.weights not in ("auto", "random") and not same:
        notes.append(f"new head for the {len(names)} classes of the data")
    if not same:
        architecture = dataclasses.replace(setup.architecture, num_classes=len(names))
        head = initial_variables(architecture, configuration.seed)
        variables = setup.variables | {name: value for name, value in head.items() if name.startswith("fc.")}
        model = dataclasses.replace(model, num_classes=len(names), labels=names)
        setup = dataclasses.replace(setup, architecture=architecture, variables=variables, model=model)
    return images, test_images, setup, notes


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
