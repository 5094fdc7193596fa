"""Between the files in which checkpoints say how their images are prepared and a `Description`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cambrian.models.checkpoints.description import Description
from cambrian.sharding import UsageError

# transformers states Pillow's number of a filter.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# From this size on transformers' ConvNextImageProcessor warps whole images instead of cropping.
_WARPED_FROM = 384
_WARP_NOTE = (
    "the weights' preprocessing warps images to squares: their centre squares are taken, which differs unless they are "
    "square"
)


def read_hugging_face_preprocessing(config: Mapping[str, Any], path: Path) -> tuple[Description, list[str]]:
    """What preprocessor_config.json of transformers asks for.

    The forms of ConvNextImageProcessor (`crop_pct`), of those that resize the shorter edge and crop (`crop_size`), and
    of those that resize to a square are read.

    Returns:
      The description without labels, and notes on what is done another way here.

    Raises:
      UsageError: naming `path` and key, if a value has another form or can't be computed here.
    """
    notes = []
    image_size = crop_fraction = None
    if config.get("do_resize", True) and "size" in config:
        shorter, warps = _edge(config["size"], "size", path)
        image_size, crop_fraction = shorter, 1.0
        if config.get("do_center_crop", False) and "crop_size" in config:
            image_size, warps = _edge(config["crop_size"], "crop_size", path)[0], False
            crop_fraction = image_size / shorter
        elif config.get("crop_pct") is not None:
            warps = shorter >= _WARPED_FROM
            crop_fraction = 1.0 if warps else float(config["crop_pct"])
        if warps:
            notes.append(_WARP_NOTE)
    interpolation = None
    if "resample" in config:
        if config["resample"] not in range(len(_FILTERS)):
            raise UsageError(f"{path} needs resample from 0 to {len(_FILTERS) - 1}, got {config['resample']!r}")
        interpolation = _FILTERS[config["resample"]]
    mean = std = None
    if not config.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    elif "image_mean" in config and "image_std" in config:
        mean, std = (
            _three(config["image_mean"], "image_mean", path),
            _three(config["image_std"], "image_std", path),
        )
    if mean is not None and std is not None:
        # Our pixels are scaled to 0…1 before they are normalised.
        factor = 255 * (config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1)
        if not math.isclose(factor, 1, rel_tol=1e-6):
            mean, std = tuple(value / factor for value in mean), tuple(value / factor for value in std)
    return _checked(Description(image_size, crop_fraction, interpolation, mean, std), path), notes


def read_timm_preprocessing(config: Mapping[str, Any], path: Path) -> tuple[Description, list[str]]:
    """What `pretrained_cfg` of timm's config.json asks for; returns and raises as `read_hugging_face_preprocessing`."""
    image_size = None
    if "input_size" in config:
        _, height, width = _three(config["input_size"], "input_size", path)
        if height != width:
            raise UsageError(f"{path} needs a square input_size, got {config['input_size']}")
        image_size = int(height)
    interpolation = config.get("interpolation")
    if interpolation is not None and interpolation not in _FILTERS:
        raise UsageError(f"{path} needs interpolation among {', '.join(_FILTERS)}, got {interpolation!r}")
    mean, std = (_three(config[name], name, path) if name in config else None for name in ("mean", "std"))
    crop_fraction = float(config["crop_pct"]) if "crop_pct" in config else None
    notes = [_WARP_NOTE] if config.get("crop_mode", "center") == "squash" else []
    return _checked(Description(image_size, crop_fraction, interpolation, mean, std), path), notes


def hugging_face_preprocessing(description: Description) -> dict[str, Any]:
    """preprocessor_config.json for a description, in the form of transformers' ViTImageProcessor and its like."""
    config: dict[str, Any] = {"do_rescale": True, "rescale_factor": 1 / 255}
    if description.image_size is not None:
        crop_fraction = description.crop_fraction or 1.0
        size = description.image_size
        config |= {
            "image_processor_type": "CLIPImageProcessor",  # the one that resizes the shorter edge, then crops
            "do_resize": True,
            "size": {"shortest_edge": round(size / crop_fraction)},
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
        }
    if description.interpolation is not None:
        config["resample"] = _FILTERS.index(description.interpolation)
    if description.mean is not None and description.std is not None:
        config |= {"do_normalize": True, "image_mean": list(description.mean), "image_std": list(description.std)}
    return config


def _edge(size: Any, name: str, path: Path) -> tuple[int, bool]:
    """The edge in pixels, and whether both sides are given, so that the image is warped."""
    if isinstance(size, Mapping) and "shortest_edge" in size:
        edge, warps = size["shortest_edge"], False
    elif isinstance(size, Mapping) and "height" in size and size["height"] == size.get("width"):
        edge, warps = size["height"], True
    else:
        edge, warps = size, False
    if not isinstance(edge, int) or edge < 1:
        raise UsageError(f"{path} needs a square {name} in pixels, got {size!r}")
    return edge, warps


def _three(values: Any, name: str, path: Path) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise UsageError(f"{path} needs three numbers as {name}, got {values!r}")
    return tuple(float(value) for value in values)


def _checked(description: Description, path: Path) -> Description:
    if description.crop_fraction is not None and not 0 < description.crop_fraction <= 1:
        raise UsageError(f"{path} needs a crop of at most the resized image, got {description.crop_fraction} of it")
    return description
