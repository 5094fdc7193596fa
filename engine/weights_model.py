"""Which model runs when weights are given: what they tell of themselves, and what a configuration adds."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from engine.configuration import Configuration, ModelConfig
from engine.flags import load_preset
from sharding import UsageError

_PRESET_OF_STEM = {"cifar": "resnet101_cifar10", "imagenet": "resnet101_imagenet"}


def model_of_weights(configuration: Configuration, told: Mapping[str, Any]) -> ModelConfig:
    """The model that given weights make: the one the user chose, else that of the preset with their stem.

    Args:
      told: what the weights tell of themselves, fields of `ModelConfig`; depth, stem and num_classes always.

    Raises:
      UsageError: naming the field, if the user chose a configuration that contradicts the weights.
    """
    if not configuration.explicit_config:
        # Labels of a preset would name other classes.
        return dataclasses.replace(load_preset(_PRESET_OF_STEM[told["stem"]]).model, **{"labels": (), **told})
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
