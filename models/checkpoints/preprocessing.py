"""The preprocessing that timm and torchvision state for their weights."""

import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from cambrian.sharding import Preprocessing, UsageError
from cambrian.sharding.preprocessing import IMAGENET_MEAN, IMAGENET_STD, are_three_numbers, is_number, is_size


def timm_preprocessing(config: Mapping[str, Any], path: Path | str) -> Preprocessing:
    """The preprocessing of timm's evaluation transform under the `pretrained_cfg` of a config.json.

    Raises:
      UsageError: naming `path` and key, if a value isn't understood.
    """
    values = {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    } | {name: value for name, value in config.items() if value}  # timm takes its default for anything empty
    input_size = values["input_size"]
    size: Any = tuple(input_size[1:]) if isinstance(input_size, list | tuple) else ()
    if not is_size(size) or input_size[0] != 3:
        raise UsageError(f"{path}: input_size must be 3, height, width, got {input_size!r}")
    if (mode := values["crop_mode"]) not in ("center", "squash", "border"):
        raise UsageError(f"{path}: crop_mode must be one of center, squash, border, got {mode!r}")
    crop_pct, mean = positive(values["crop_pct"], "crop_pct", path), three_numbers(values["mean"], "mean", path)
    resize_to = math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct)
    centre = "shortest_edge" if resize_to[0] == resize_to[1] else "cover"
    return checked(
        path,
        size=size,
        resize_to=resize_to,
        mean=mean,
        std=three_numbers(values["std"], "std", path),
        resize={"center": centre, "squash": "exact", "border": "contain"}[mode],
        interpolation=values["interpolation"],
        fill=tuple(round(255 * value) for value in mean) if mode == "border" else (0, 0, 0),
    )


# The shorter side in pixels for torchvision's published ResNets; V1 was replaced once, in 2021.
TORCHVISION_V1, TORCHVISION_V2 = 256, 232
_TORCHVISION_RESIZES = {
    **dict.fromkeys(("resnet18-f37072fd", "resnet34-b627a593", "resnet50-0676ba61"), TORCHVISION_V1),
    **dict.fromkeys(("resnet101-63fe2227", "resnet152-394f9c45"), TORCHVISION_V1),
    **dict.fromkeys(("resnet18-5c106cde", "resnet34-333f7ec4", "resnet50-19c8e357"), TORCHVISION_V1),
    **dict.fromkeys(("resnet101-5d3b4d8f", "resnet152-b121ed2d"), TORCHVISION_V1),
    **dict.fromkeys(("resnet50-11ad3fa6", "resnet101-cd907fc2", "resnet152-f82ba261"), TORCHVISION_V2),
}


def torchvision_preprocessing(name: str | PurePath) -> Preprocessing | None:
    """The preprocessing of the torchvision ResNet published under this file name; None for other names."""
    resize = _TORCHVISION_RESIZES.get(PurePath(name).stem)
    return None if resize is None else Preprocessing((224, 224), (resize, resize))


def checked(path: Path | str, **fields: Any) -> Preprocessing:
    """A `Preprocessing`; its errors name `path`."""
    try:
        return Preprocessing(**fields)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def three_numbers(values: Any, key: str, path: Path | str) -> tuple[float, ...]:
    """`values` as floats; raises UsageError, naming `path` and `key`, unless they are three finite numbers."""
    if not isinstance(values, list | tuple) or not are_three_numbers(tuple(values)):
        raise UsageError(f"{path}: {key} must be three numbers, got {values!r}")
    return tuple(map(float, values))


def positive(value: Any, key: str, path: Path | str) -> float:
    """`value` as a float; raises UsageError, naming `path` and `key`, unless it is a number above 0."""
    if not is_number(value) or value < 1e-9:  # quotients must stay finite
        raise UsageError(f"{path}: {key} must be a number above 0, got {value!r}")
    return float(value)
