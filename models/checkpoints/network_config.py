"""What the config.json of transformers and timm states about the network, checked against its tensors."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cambrian.models.resnet.architecture import IMAGE_CHANNELS, STEM_KERNELS, Architecture
from cambrian.sharding import UsageError

# Keys that hold for any model and say nothing about the network's computation.
_COMMON = {
    *("_name_or_path", "architectures", "chunk_size_feed_forward", "dtype", "id2label", "initializer_range"),
    *("is_encoder_decoder", "label2id", "model_type", "output_attentions", "output_hidden_states", "problem_type"),
    *("quantization_config", "return_dict", "torch_dtype", "transformers_version"),
}
_TRANSFORMERS = _COMMON | {"out_features", "out_indices", "stage_names"}  # of a backbone, which returns features
_TIMM = _COMMON | {"label_descriptions", "label_names", "pretrained_cfg"}
# Arguments of timm's ResNet that matter only while it is trained or before its weights are loaded.
_TIMM_TRAINING = {"drop_block_rate", "drop_path_rate", "drop_rate", "pretrained", "zero_init_last"}
_WEIGHTS_ONLY = {"input_activations": None, "output_activations": None}
_INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}


def stem_notes(architecture: Architecture, config: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """A note where neither tensors nor `config` say what follows the stem's kernel."""
    if architecture.stem == "imagenet" or {"stem_stride", "stem_pooling"} <= set(config or ()):
        return ()
    return ("3×3 stem computed with stride 1 and without pooling: the weights don't state either",)


def hugging_face_config(architecture: Architecture) -> dict[str, Any]:
    """The keys of transformers' `ResNetConfig` that define the network, and three of our own.

    transformers knows the 7×7 stem only; `stem_kernel_size`, `stem_stride` and `stem_pooling` define another one.
    """
    imagenet = architecture.stem == "imagenet"
    return {
        "model_type": "resnet",
        "num_channels": IMAGE_CHANNELS,
        "embedding_size": architecture.width,
        "hidden_sizes": _stage_channels(architecture),
        "depths": list(architecture.blocks),
        "layer_type": "bottleneck" if architecture.bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "stem_kernel_size": STEM_KERNELS[architecture.stem],
        "stem_stride": 2 if imagenet else 1,
        "stem_pooling": imagenet,
    }


def check_hugging_face(config: dict[str, Any], architecture: Architecture, path: Path) -> list[str]:
    """Checks a config.json of transformers; keys that it leaves out have no say.

    Returns:
      A note on the keys that aren't understood, if there are any.

    Raises:
      UsageError: naming `path` and key, where it asks for another network than the tensors are computed as.
    """
    needed = hugging_face_config(architecture) | {"num_labels": architecture.num_classes}
    _check(config, needed, path)
    _check_quantization(config.get("quantization_config"), path)
    return _unknown(config, _TRANSFORMERS | needed.keys(), path)


def check_timm(config: dict[str, Any], architecture: Architecture, path: Path) -> list[str]:
    """Checks a config.json of timm, or of its wrapper in transformers; returns and raises as `check_hugging_face`."""
    needed = {
        "architecture": architecture.name,
        "num_classes": architecture.num_classes,
        "num_features": _stage_channels(architecture)[-1],
        "global_pool": "avg",
        "do_pooling": True,
    }
    # The tag after a dot, as in resnet50.a1_in1k, names the training.
    _check(config | {"architecture": re.sub(r"\..*", "", str(config["architecture"]))}, needed, path)
    _check_quantization(config.get("quantization_config"), path)
    arguments = _object(config, "model_args", path)
    width = architecture.width
    needed_arguments = {
        "act_layer": "relu",
        "aa_layer": None,
        "avg_down": False,
        "base_width": 64,
        "block_args": None,
        "block_reduce_first": 1,
        "cardinality": 1,
        "channels": [width * 2**stage for stage in range(len(architecture.blocks))],
        "down_kernel_size": 1,
        "global_pool": "avg",
        "in_chans": IMAGE_CHANNELS,
        "layers": list(architecture.blocks),
        "norm_layer": "batchnorm2d",
        "num_classes": architecture.num_classes,
        "output_stride": 2 ** (len(architecture.blocks) + 1),
        "replace_stem_pool": False,
        "stem_type": "",
        "stem_width": 64,
    }
    given = {name: value for name, value in arguments.items() if value is not None}  # timm's default for null
    _check({name: _lower(value) for name, value in given.items()}, needed_arguments, path, "model_args.")
    known_arguments = _TIMM_TRAINING | needed_arguments.keys()
    unknown = {f"model_args.{name}": value for name, value in given.items() if name not in known_arguments}
    return _unknown(config | unknown, _TIMM | needed.keys() | {"model_args"}, path)


def _stage_channels(architecture: Architecture) -> list[int]:
    widening = 4 if architecture.bottleneck else 1
    return [architecture.width * 2**stage * widening for stage in range(len(architecture.blocks))]


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _object(config: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    value = config.get(name) or {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{path}: {name} must be an object, got {value!r:.80}")
    return value


def _check(config: Mapping[str, Any], needed: Mapping[str, Any], path: Path, prefix: str = "") -> None:
    for name, value in needed.items():
        if name in config and config[name] != value:
            raise UsageError(
                f"{path}: {prefix}{name} must be {value!r}, as the tensors are computed here, got {config[name]!r:.80}"
            )


def _check_quantization(config: Any, path: Path) -> None:
    """Only integer weights with a scale for each output channel can be read, as compressed-tensors stores them."""
    if config is None:
        return
    where, method = f"{path}: quantization_config", {"quant_method": "compressed-tensors", "format": "int-quantized"}
    groups = config.get("config_groups") if isinstance(config, Mapping) else None
    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        raise UsageError(f"{where} must be that of compressed-tensors, got {config!r:.80}")
    for needed, given in ((method, config), *((_WEIGHTS_ONLY, group) for group in groups.values())):
        _check(given, needed, path, "quantization_config.")
    for group in groups.values():
        _check(_object(group, "weights", path), _INT8, path, "quantization_config.weights.")


def _unknown(config: dict[str, Any], known: set[str], path: Path) -> list[str]:
    unknown = sorted(config.keys() - known)
    return [f"{path}: not understood, and left out of account: {', '.join(unknown)}"] if unknown else []
