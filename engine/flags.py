"""The flags of main.py, and the configuration they make: defaults, then `--config`, then the command line."""

import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from engine.configuration import EXECUTIONS, PRECISIONS, Configuration, ModelConfig, Preset
from engine.listed_flag import OneOrMore
from sharding import PARTITIONS, PLATFORMS, MeshShape, UsageError

MODES = ("run", "compile", "plan", "train")
DEFAULT_CONFIG = "resnet101_cifar10"
SEARCHES = ("grid", "auto")
OBJECTIVES = ("images_per_second", "latency_ms_p99", "wall_ms")
# What a sweep may vary, in the order in which it names a configuration.
STARRED = (
    "mesh",
    "threads",
    "batch_size",
    "precision",
    "partition",
    "execution",
    "platform",
    "image_size",
    "num_images",
)
SWEEP_FLAGS = (
    "repeats",
    "search",
    "objective",
    "max_latency_ms",
    "min_top1",
    "timeout_s",
    "fresh",
    "dry_run",
)
DECIDED_BY_ARTIFACT = ("mesh", "batch_size", "precision", "partition", "image_size", "weights", "platform")


_MODE_HELP = (
    "run: classify images. compile: build and save the artefact, print its path. "
    "plan: show the executable's plan and how long a launch takes. train: train weights."
)


def define_flags() -> None:
    """Registers every flag with absl."""
    strings, integers = OneOrMore(flags.ArgumentParser()), OneOrMore(flags.IntegerParser())
    flags.DEFINE_string("mode", "run", _MODE_HELP)
    flags.DEFINE_string("config", "", "A file of configs/ or its name, or a report.json whose flags are taken.")
    flags.DEFINE(strings, "mesh", "4x8", "MODELxDATA: devices that cut each layer × devices that cut the batch.")
    flags.DEFINE(integers, "threads", 2, "Host threads that decode, transfer and launch.")
    flags.DEFINE(integers, "batch_size", 0, "Images per launch over all devices, a multiple of DATA. 0: chosen.")
    flags.DEFINE(strings, "precision", "auto", f"One of {', '.join(PRECISIONS)}. auto: bfloat16 where it is faster.")
    flags.DEFINE(strings, "partition", "auto", f"How the model axis cuts layers: one of {', '.join(PARTITIONS)}.")
    flags.DEFINE(
        strings, "execution", "offline", f"One of {', '.join(EXECUTIONS)}: run a saved executable, or compile here."
    )
    flags.DEFINE(strings, "platform", "auto", f"One of {', '.join(PLATFORMS)}.")
    flags.DEFINE(integers, "image_size", 0, "Height and width in pixels. 0: the configuration's.")
    flags.DEFINE_string("data", "auto", "auto, cifar10, synthetic, or a folder of images.")
    flags.DEFINE_string("split", "test", "Split of the data.")
    flags.DEFINE(integers, "num_images", 0, "Images to classify. 0: all of a folder or CIFAR-10, 512 synthetic.")
    flags.DEFINE_string("weights", "auto", "auto, random, or the path of a checkpoint.")
    flags.DEFINE_string("artifact", "", "Run this received artefact directory, with neither model code nor weights.")
    flags.DEFINE_string("artifact_dir", "", "Cache of artefacts; default: in the user's cache folder.")
    flags.DEFINE_string("signing_key", "", "File of the user's key; default: in the user's configuration folder.")
    flags.DEFINE_string("output_dir", "", "Where report and predictions go; default: a new folder under runs/.")
    flags.DEFINE_string("device_memory_limit", "", "Such as 512MiB; default: the device's memory.")
    flags.DEFINE_bool("tune", False, "In mode plan: measure this machine's cost table first, as far as it is lacking.")
    flags.DEFINE_bool("skip_bad_images", False, "Count and list images that can't be read instead of stopping.")
    flags.DEFINE_integer("seed", 0, "Of random weights and synthetic images.")
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    flags.DEFINE_integer("repeats", 3, "Of a sweep: runs of each configuration.", lower_bound=1)
    flags.DEFINE_enum("search", "grid", SEARCHES, "Of a sweep: grid runs every configuration, auto the promising ones.")
    flags.DEFINE_enum("objective", "images_per_second", OBJECTIVES, "Of a sweep: the report key to be best in.")
    flags.DEFINE_float("max_latency_ms", None, "Of a sweep: the most that latency_ms_p99 may be.", lower_bound=0)
    flags.DEFINE_float("min_top1", None, "Of a sweep: the least that top1 may be, from 0 to 1.", 0, 1)
    flags.DEFINE_float("timeout_s", 1800, "Of a sweep: seconds after which a build or run is ended.", lower_bound=1)
    flags.DEFINE_bool("fresh", False, "Of a sweep: remove what an earlier one left in its directory and start over.")
    flags.DEFINE_bool("dry_run", False, "Of a sweep: list its configurations with predicted time and memory.")


def read_axes(values: flags.FlagValues) -> dict[str, tuple[Any, ...]]:
    """The values of each flag that a sweep may vary; flags change in `values` as in `read_configuration`.

    Raises:
      UsageError: if the config is unknown, or flags of a sweep come without one.
    """
    _apply_config(values, values["config"].value or "")
    axes = {name: value if isinstance(value := values[name].value, tuple) else (value,) for name in STARRED}
    given = [name for name in SWEEP_FLAGS if values[name].present]
    if given and all(len(axis) == 1 for axis in axes.values()):
        raise UsageError(
            f"--{given[0]} needs a sweep, several values of one of {', '.join(STARRED)}, got one configuration"
        )
    return axes


def read_configuration(values: flags.FlagValues, chosen: Mapping[str, Any] | None = None) -> Configuration:
    """Makes the configuration; flags that `--config` sets change in `values` unless the command line gave them.

    Args:
      chosen: flag → value, for those that a sweep varies.

    Raises:
      UsageError: if the config is unknown or a value makes no sense.
    """
    model = _apply_config(values, values["config"].value or "")
    if values["mode"].value not in MODES:
        raise UsageError(f"mode must be one of {', '.join(MODES)}, got {values['mode'].value!r}")
    if values["mode"].value == "train":
        _check_training(values)
    if values["artifact"].value:
        for name in DECIDED_BY_ARTIFACT:
            if values[name].present:
                raise UsageError(f"an artifact decides its own {name}: leave --{name} out, got {values[name].value!r}")
        if values["mode"].value == "compile":
            raise UsageError(f"mode compile builds an artifact: leave --artifact out, got {values['artifact'].value!r}")
    if values["mode"].value == "compile" and values["execution"].value == "online":
        raise UsageError("mode compile saves an artifact: --execution must be offline, got online")
    if values["tune"].value and values["mode"].value != "plan":
        raise UsageError(f"--tune belongs to mode plan, got mode {values['mode'].value}")
    fields = Configuration.__dataclass_fields__
    given: dict[str, Any] = {name: values[name].value for name in fields if name in values} | dict(chosen or {})
    explicit_config = bool(values["config"].value)
    return Configuration(
        **given | {"model": model, "mesh": MeshShape.parse(given["mesh"]), "explicit_config": explicit_config}
    )


def _check_training(values: flags.FlagValues) -> None:
    """Refuses what a training has no use for; its mesh is one device unless asked for otherwise."""
    for name, default in (("artifact", ""), ("execution", "offline"), ("partition", "auto")):
        if values[name].value != default:
            raise UsageError(f"mode train runs no executable: leave --{name} out, got {values[name].value!r}")
    if not values["mesh"].present and values["mesh"].value == values["mesh"].default:
        values["mesh"].value = "1x1"


def effective_flags(values: flags.FlagValues) -> dict[str, Any]:
    """Every flag of `define_flags` with the value in force."""
    return {flag.name: flag.value for flag in values.flags_by_module_dict()[__name__]}


def _apply_config(values: flags.FlagValues, config: str) -> ModelConfig:
    if not config.endswith(".json"):
        preset = load_preset(config or DEFAULT_CONFIG)
        _set_absent(values, dict(preset.flags), config)
        return preset.model
    try:
        reported = dict(json.loads(Path(config).read_text())["flags"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"config must be a report.json with flags, got {config}: {error}") from None
    reported.pop("output_dir", None)  # the same again must not overwrite the report it is read from
    _set_absent(values, reported, config)
    return load_preset(values["config"].value or DEFAULT_CONFIG).model


def _set_absent(values: flags.FlagValues, wanted: dict[str, Any], config: str) -> None:
    known = effective_flags(values)
    for name, value in wanted.items():
        if name not in known:
            raise UsageError(f"{config} must set flags of main.py, got {name!r}")
        if name == "config" or not values[name].present:
            try:
                flag: Any = values[name]
                flag.value = None if value is None and flag.default is None else flag.parser.parse(value)
            except (ValueError, TypeError) as error:
                raise UsageError(f"flag {name} of {config}: {error}") from None


def load_preset(config: str) -> Preset:
    """The `CONFIG` of a Python file, given as its path or as its name in configs/.

    Raises:
      UsageError: if there is no such file, or it defines no preset.
    """
    path, names = read_config_file(config)
    preset = names.get("CONFIG")
    if not isinstance(preset, Preset):
        raise UsageError(f"{path} must define CONFIG, a Preset, got {type(preset).__name__}")
    return preset


def read_config_file(config: str) -> tuple[Path, dict[str, Any]]:
    """The path of a config, given as a Python file or as a name in configs/, and all names that it defines.

    Raises:
      UsageError: if there is no such file.
    """
    folder = Path(__file__).parent.parent / "configs"
    path = Path(config) if config.endswith(".py") else folder / f"{config}.py"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__"))
        raise UsageError(f"config must be a .py or report.json file, or one of {names}; got {config!r}")
    return path, runpy.run_path(str(path))
