"""The model that a configuration names: which network, with which weights, on which images."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cambrian.commands.config_file import read_config_file
from cambrian.commands.configuration import Configuration, ModelConfig
from cambrian.sharding import UsageError

if TYPE_CHECKING:
    from cambrian import models

_CONFIG_OF_STEM = {"cifar": "resnet101_cifar10", "imagenet": "resnet101_imagenet"}
NO_WEIGHTS = "no trained weights: running on random ones; --weights PATH takes a checkpoint"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A ResNet with its weights.

    Attributes:
      config: its name, classes and preprocessing.
      variables: see `cambrian.models.resnet.variables`.
      image_size: height and width of the images in pixels.
      weights: where the variables come from.
      trained: whether they are trained; False for random ones.
      notes: deviations from the request.
    """

    config: ModelConfig
    architecture: "models.Architecture"
    variables: dict[str, np.ndarray] = dataclasses.field(repr=False)
    image_size: int
    weights: str
    trained: bool
    notes: tuple[str, ...] = ()


def default_model(stem: str) -> ModelConfig:
    """The model in configs/ with this stem.

    Raises:
      UsageError: if the stem is unknown.
    """
    if stem not in _CONFIG_OF_STEM:
        raise UsageError(f"expected a stem among {', '.join(_CONFIG_OF_STEM)}, got {stem!r}")
    return read_config_file(_CONFIG_OF_STEM[stem]).preset.model


def read_model(configuration: Configuration) -> Model:
    """Reads the configuration's weights, or draws random ones.

    Raises:
      UsageError: if the weights can't be read, or are those of another model than the user named.
    """
    from cambrian import models  # only to build: an offline run starts without them

    config, notes = configuration.model, ()
    architecture = models.Architecture.resnet(config.depth, config.stem, config.num_classes)
    trained, weights = configuration.weights not in ("auto", "random"), configuration.weights
    if trained:
        given = models.read_weights(weights)
        if configuration.explicit_config and given.architecture != architecture:
            raise UsageError(
                f"--config needs weights of {_describe(architecture)}, got {_describe(given.architecture)} in {weights}"
            )
        config = model_of_weights(configuration, given.told())
        architecture, variables, notes = given.architecture, given.variables, given.notes
    else:
        notes = (NO_WEIGHTS,) if weights == "auto" else ()
        weights = f"random, seed {configuration.seed}"
        variables = models.random_variables(architecture, configuration.seed)
    image_size = configuration.image_size or config.image_size
    return Model(config, architecture, variables, image_size, weights, trained, notes)


def _describe(architecture: "models.Architecture") -> str:
    return f"{architecture.name} with the {architecture.stem} stem and {architecture.num_classes} classes"


def model_of_weights(configuration: Configuration, told: Mapping[str, Any]) -> ModelConfig:
    """The model of given weights: the one that the user chose, else the default one with their stem.

    Args:
      told: fields of `ModelConfig` that the weights state; depth, stem and num_classes always.

    Raises:
      UsageError: naming the field, if the user chose a configuration that contradicts the weights.
    """
    if not configuration.explicit_config:
        # Labels of a preset would name other classes.
        return dataclasses.replace(default_model(told["stem"]), **{"labels": (), **told})
    chosen = configuration.model
    for name, value in told.items():
        ours = getattr(chosen, name)
        if name == "labels" and not ours:
            chosen = dataclasses.replace(chosen, labels=value)
        elif not _agree(ours, value):
            raise UsageError(
                f"--config needs weights with {name} {_shown(ours)}, got {_shown(value)} in {configuration.weights}"
            )
    return chosen


def _agree(ours: Any, theirs: Any) -> bool:
    """Whether two values are the same; means and deviations are published to four digits."""
    if isinstance(ours, float):
        return math.isclose(ours, theirs, abs_tol=1e-4)
    if isinstance(ours, tuple) and len(ours) == len(theirs):
        return all(map(_agree, ours, theirs))
    return ours == theirs


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
