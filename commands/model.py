"""The model that a configuration names: which network, with which weights, on which images."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cambrian.commands.config_file import read_config_file
from cambrian.commands.configuration import Configuration, ModelConfig
from cambrian.sharding import UsageError

if TYPE_CHECKING:
    from cambrian import models

_CONFIG_OF_STEM = {"cifar": "resnet101_cifar10", "imagenet": "resnet101_imagenet"}
_SHIPPED = "resnet101_cifar10"  # a folder of weights/ and the configuration that it was trained for
_SHIPPED_FOLDER = Path(__file__).parent.parent / "weights" / _SHIPPED
NO_WEIGHTS = "no trained weights: running on random ones; --weights PATH takes a checkpoint"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A ResNet with its weights.

    Attributes:
      config: its name, preprocessing and classes.
      variables: see `cambrian.models.resnet.variables`.
      weights: where the variables come from.
      trained: whether they are trained; False for random ones.
      notes: deviations from the request.
    """

    config: ModelConfig
    architecture: "models.Architecture"
    variables: dict[str, np.ndarray] = dataclasses.field(repr=False)
    weights: str
    trained: bool
    notes: tuple[str, ...] = ()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.config.preprocessing.size


def default_model(stem: str) -> ModelConfig:
    """The model in configs/ with this stem.

    Raises:
      UsageError: if the stem is unknown.
    """
    if stem not in _CONFIG_OF_STEM:
        raise UsageError(f"expected a stem among {', '.join(_CONFIG_OF_STEM)}, got {stem!r}")
    return read_config_file(_CONFIG_OF_STEM[stem]).preset.model


def weights_path(configuration: Configuration) -> Path | None:
    """The file or folder that holds the configuration's weights; None for random ones.

    `auto` means the shipped weights for the very model that they were trained for, random ones for any other.
    """
    if configuration.weights == "auto":
        return _SHIPPED_FOLDER if configuration.model == read_config_file(_SHIPPED).preset.model else None
    return None if configuration.weights == "random" else Path(configuration.weights)


def read_model(configuration: Configuration) -> Model:
    """Reads the configuration's weights, or draws random ones.

    Raises:
      UsageError: if the weights can't be read, or belong to another model than the user named.
    """
    from cambrian import models  # only to build: an offline run starts without them

    config, path = configuration.model, weights_path(configuration)
    architecture = models.Architecture.resnet(config.depth, config.stem, config.num_classes)
    if path is None:
        weights = f"random, seed {configuration.seed}"
        variables = models.random_variables(architecture, configuration.seed)
        notes = (NO_WEIGHTS,) if configuration.weights == "auto" else ()
    else:
        given = models.read_weights(path)
        if configuration.explicit_config and given.architecture != architecture:
            raise UsageError(
                f"--config needs weights of {_describe(architecture)}, got {_describe(given.architecture)} in {path}"
            )
        architecture, variables, notes = given.architecture, given.variables, given.notes
        if configuration.weights == "auto":
            weights = f"{_SHIPPED}, shipped with Cambrian"
        else:
            weights, told = configuration.weights, given.told()
            config = model_of_weights(configuration, told)
            notes = (*notes, *preprocessing_notes(configuration, told, config))
    return Model(with_image_size(config, configuration), architecture, variables, weights, path is not None, notes)


def preprocessing_notes(configuration: Configuration, told: Mapping[str, Any], config: ModelConfig) -> tuple[str, ...]:
    """A note where neither the weights nor the user state the preprocessing; `told` as in `model_of_weights`."""
    if "preprocessing" in told or configuration.explicit_config or configuration.resize:
        return ()
    preprocessing = with_image_size(config, configuration).preprocessing
    height, width = preprocessing.size
    assumed = f"images become {height}×{width} pixels, normalised as those of CIFAR-10"
    if config.stem == "imagenet":
        edge, _ = preprocessing.resized_size(1, 1)
        assumed = (
            f"the shorter side becomes {edge} pixels, as for V1 of torchvision's weights; "
            f"--resize {round(height * 232 / 224)} suits V2"
        )
    return (f"the weights don't state their preprocessing: {assumed}",)


def with_image_size(config: ModelConfig, configuration: Configuration) -> ModelConfig:
    """The model with the image size and the resizing that the flags ask for; a size alone keeps the crop's fraction."""
    preprocessing, edge = config.preprocessing, configuration.resize
    if configuration.image_size:
        preprocessing = preprocessing.with_size(configuration.image_size)
    if edge:
        preprocessing = dataclasses.replace(preprocessing, resize_to=(edge, edge))
    return dataclasses.replace(config, preprocessing=preprocessing)


def _describe(architecture: "models.Architecture") -> str:
    return f"{architecture.name} with the {architecture.stem} stem and {architecture.num_classes} classes"


def model_of_weights(configuration: Configuration, told: Mapping[str, Any]) -> ModelConfig:
    """The model of given weights: the one that the user chose, else the default one with their stem.

    Args:
      told: fields of `ModelConfig` that the weights state; depth, stem and num_classes always.

    Raises:
      UsageError: naming the field, if the user chose a configuration that contradicts the weights.
    """
    if configuration.resize and "preprocessing" in told:
        stated = told["preprocessing"].resize_to
        raise UsageError(f"resize must be left out for weights that state theirs, {stated}, got {configuration.resize}")
    if not configuration.explicit_config:
        # Labels of a preset would name other classes.
        return dataclasses.replace(default_model(told["stem"]), **{"labels": (), **told})
    chosen = configuration.model
    compared = told if chosen.labels else {name: value for name, value in told.items() if name != "labels"}

    def contradictions(model: ModelConfig) -> list[tuple[str, Any, Any]]:
        return [(name, ours, value) for name, ours, value in _pairs(model, compared) if not _agree(ours, value)]

    found = contradictions(chosen)
    if found and contradictions(with_image_size(chosen, configuration)):
        name, ours, value = found[0]
        raise UsageError(
            f"--config needs weights with {name} {_shown(ours)}, got {_shown(value)} in {configuration.weights}"
        )
    return dataclasses.replace(chosen, labels=chosen.labels or told.get("labels", ()))


def _pairs(chosen: ModelConfig, told: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Each fact that the weights state: name, value of the chosen model, value of the weights."""
    for name, value in told.items():
        if name == "preprocessing":
            for field in dataclasses.fields(value):
                yield field.name, getattr(chosen.preprocessing, field.name), getattr(value, field.name)
        else:
            yield name, getattr(chosen, name), value


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
