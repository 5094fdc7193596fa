"""Between the preprocessor_config.json of transformers and a `Preprocessing`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cambrian.models.checkpoints.preprocessing import checked, positive, three_numbers
from cambrian.sharding import Preprocessing, UsageError
from cambrian.sharding.preprocessing import IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS, is_size

# Defaults of transformers 5.24 for keys that preprocessor_config.json leaves out or null.
_COMMON = {
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "default_to_square": True,  # whether an integer as size means height and width
    "resample": 3,
    "do_center_crop": False,
    "crop_size": {},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
_SHORTEST_EDGE = {"size": {"shortest_edge": 224}, "default_to_square": False}
_CROP = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
_CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
_MOBILE_NET = _CROP | {"size": {"shortest_edge": 256}, "default_to_square": False, "resample": 2}
_PROCESSORS: dict[str, dict[str, Any]] = {
    "BeitImageProcessor": {"crop_size": {"height": 224, "width": 224}},
    "BitImageProcessor": _SHORTEST_EDGE | _CROP | _CLIP,
    "CLIPImageProcessor": _SHORTEST_EDGE | _CROP | _CLIP,
    "ConvNextImageProcessor": {"size": {"shortest_edge": 384}, "default_to_square": False, "crop_pct": 0.875},
    "DeiTImageProcessor": _CROP | {"size": {"height": 256, "width": 256}},
    "MobileNetV1ImageProcessor": _MOBILE_NET,
    "MobileNetV2ImageProcessor": _MOBILE_NET,
    "MobileViTImageProcessor": _SHORTEST_EDGE
    | {"do_center_crop": True, "crop_size": {"height": 256, "width": 256}}
    | {"do_normalize": None, "do_flip_channel_order": True},  # None: the class has no such key
    "PvtImageProcessor": {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    "SiglipImageProcessor": {"default_to_square": False},
    "ViTImageProcessor": {"resample": 2},
}
_OF_RESNET = "ConvNextImageProcessor"  # AutoImageProcessor's choice for the model_type resnet
# Keys without effect on an upright RGB picture.
_INERT = {
    *("auto_map", "feature_extractor_type", "image_processor_type", "processor_class", "_processor_class", "use_fast"),
    *("data_format", "device", "disable_grouping", "input_data_format", "return_tensors", "_valid_processor_keys"),
    *("do_convert_rgb", "do_reduce_labels", "image_seq_length", "model_input_names"),
}
# Our own key, which transformers ignores, for what its processors can't express.
_OWN = "cambrian_preprocessing"
# ConvNextImageProcessor warps pictures instead of cropping them from this size on.
_WARPED_FROM = 384


def hugging_face_preprocessing(config: Mapping[str, Any], path: Path | str) -> Preprocessing:
    """The preprocessing of the processor that transformers' AutoImageProcessor makes of a preprocessor_config.json.

    Raises:
      UsageError: naming `path` and key, if a class, key or value isn't understood, or pictures keep their own sizes.
    """
    if config.get(_OWN) is None:
        return _of_processor(config, path)
    own = Preprocessing.from_json(config[_OWN], f"{path}: {_OWN}")
    if _of_processor(config, path) != _of_processor(hugging_face_processor(own), path):
        raise UsageError(f"{path}: {_OWN} must agree with the other keys, got {config[_OWN]!r:.300}")
    return own


def _of_processor(config: Mapping[str, Any], path: Path | str) -> Preprocessing:
    named = config.get("image_processor_type") or config.get("feature_extractor_type") or _OF_RESNET
    # transformers takes its torchvision class, whichever variant a file names.
    processor = str(named).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if processor not in _PROCESSORS:
        raise UsageError(f"{path}: image_processor_type must be one of {', '.join(_PROCESSORS)}, got {named!r}")
    defaults = _COMMON | _PROCESSORS[processor]
    given = {key: value for key, value in config.items() if value is not None and key not in _INERT and key != _OWN}
    for key, value in given.items():
        if defaults.get(key) is None and value is not False:
            raise UsageError(f"{path}: {key} must be off or absent for {processor}, got {value!r}")
        if isinstance(defaults.get(key), bool) and not isinstance(value, bool):
            raise UsageError(f"{path}: {key} must be true or false, got {value!r}")
    values = defaults | given

    size, resize_to, resize = None, None, "none"
    if values["do_resize"]:
        edges = _edges(values["size"], "size", path, values["default_to_square"])
        resize_to, resize, size = _resizing(processor, edges, values, path)
    if values["do_center_crop"]:
        crop = _edges(values["crop_size"], "crop_size", path, square=True)
        if len(crop) != 2 or (resize != "exact" and size not in (None, crop)):
            raise UsageError(f"{path}: crop_size must be height and width, and equal size if that crops, got {crop}")
        size = crop
    if size is None:
        raise UsageError(f"{path}: expected size with height and width, or do_center_crop, got pictures of many sizes")
    resample = values["resample"]
    if not isinstance(resample, int) or isinstance(resample, bool) or not 0 <= resample < len(INTERPOLATIONS):
        raise UsageError(f"{path}: resample must be from 0 to {len(INTERPOLATIONS) - 1}, got {resample!r}")
    interpolation = INTERPOLATIONS[resample]
    mean, std = _normalisation(values, path)
    return checked(
        path,
        size=size,
        resize_to=resize_to,
        mean=mean,
        std=std,
        resize=resize,
        interpolation=interpolation,
        # torchvision lacks these filters for tensors; transformers' Pillow backend computes them.
        resampler="pillow" if interpolation in ("box", "hamming") else "torch",
        offset_rounding="floor",
        channels="BGR" if values.get("do_flip_channel_order") else "RGB",
    )


def _resizing(
    processor: str, edges: tuple[int, ...], values: Mapping[str, Any], path: Path | str
) -> tuple[tuple[int, int], str, tuple[int, int] | None]:
    """`resize_to`, `resize`, and the input size where resizing decides it."""
    if processor == "ConvNextImageProcessor":
        if len(edges) != 1:
            raise UsageError(f"{path}: size of {processor} must be shortest_edge, got {values['size']!r}")
        crop = edges[0], edges[0]
        if edges[0] >= _WARPED_FROM:
            return crop, "exact", crop
        edge = int(edges[0] / positive(values["crop_pct"], "crop_pct", path))
        return (edge, edge), "shortest_edge", crop
    if len(edges) == 1:
        return (edges[0], edges[0]), "shortest_edge", None
    return (edges[0], edges[1]), "exact", (edges[0], edges[1])


def _normalisation(values: Mapping[str, Any], path: Path | str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, for pixels scaled to 0…1, that equal rescaling and normalising."""
    factor = 255.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if values["do_rescale"]:
        factor *= positive(values["rescale_factor"], "rescale_factor", path)
        factor = 1.0 if math.isclose(factor, 1, rel_tol=1e-6) else factor
    if values["do_normalize"]:
        mean, std = (three_numbers(values[key], key, path) for key in ("image_mean", "image_std"))
    return tuple(value / factor for value in mean), tuple(value / factor for value in std)


def hugging_face_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """The preprocessor_config.json that `hugging_face_preprocessing` reads back unchanged.

    It makes transformers' CLIPImageProcessor do the same as far as that class can; where it can't, a key of our own
    holds the whole.
    """
    config: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor",  # resizes either way, then crops
        "do_resize": preprocessing.resize != "none",
        "do_center_crop": True,
        "crop_size": dict(zip(("height", "width"), preprocessing.size, strict=True)),
        "resample": INTERPOLATIONS.index(preprocessing.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    if preprocessing.resize_to is not None:
        height, width = preprocessing.resize_to
        exact = preprocessing.resize == "exact"
        config["size"] = {"height": height, "width": width} if exact else {"shortest_edge": max(height, width)}
    if _of_processor(config, "preprocessor_config.json") != preprocessing:
        config[_OWN] = preprocessing.to_json()
    return config


def _edges(value: Any, key: str, path: Path | str, square: bool) -> tuple[int, ...]:
    """Height and width, or the shorter edge alone; `square`: whether an integer means both sides."""
    edges: tuple[Any, ...] = ()
    if isinstance(value, Mapping):
        given = {name: edge for name, edge in value.items() if edge is not None}
        for names in (("shortest_edge",), ("height", "width")):
            if set(given) == set(names):
                edges = tuple(given[name] for name in names)
    elif isinstance(value, list | tuple) and len(value) == 2:
        edges = tuple(value)
    elif isinstance(value, int):
        edges = (value, value) if square else (value,)
    if not edges or not is_size((edges[0], edges[-1])):
        raise UsageError(f"{path}: {key} must be shortest_edge, or height and width, in pixels, got {value!r}")
    return edges
