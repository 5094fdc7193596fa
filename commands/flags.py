"""The flags of main.py, read once: the command line over `--config` over defaults."""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from absl import flags

from cambrian.commands.config_file import DEFAULT_CONFIG, ConfigFile, read_config_file, read_reported_flags
from cambrian.commands.configuration import EXECUTIONS, PRECISIONS, Configuration
from cambrian.commands.listed_flag import OneOrMore
from cambrian.sharding import PARTITIONS, MeshShape, UsageError
from cambrian.sharding.host import PLATFORMS

MODES = ("run", "compile", "plan", "train")
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


def define_flags(values: flags.FlagValues) -> None:
    """Registers every flag in `values`."""
    define, boolean, integer, real, string, choice = (
        functools.partial(function, flag_values=values)
        for function in (
            flags.DEFINE,
            flags.DEFINE_bool,
            flags.DEFINE_integer,
            flags.DEFINE_float,
            flags.DEFINE_string,
            flags.DEFINE_enum,
        )
    )
    strings, integers = OneOrMore(flags.ArgumentParser()), OneOrMore(flags.IntegerParser())
    string("mode", "run", _MODE_HELP)
    string("config", "", "A file of configs/ or its name, or a report.json whose flags are taken.")
    define(strings, "mesh", "4x8", "MODELxDATA: devices that cut each layer × devices that cut the batch.")
    define(integers, "threads", 2, "Host threads that decode, transfer and launch.")
    define(integers, "batch_size", 0, "Images per launch over all devices, a multiple of DATA. 0: chosen.")
    define(strings, "precision", "auto", f"One of {', '.join(PRECISIONS)}. auto: bfloat16 where it is faster.")
    define(strings, "partition", "auto", f"How the model axis cuts layers: one of {', '.join(PARTITIONS)}.")
    define(strings, "execution", "offline", f"One of {', '.join(EXECUTIONS)}: run a saved executable, or compile here.")
    define(strings, "platform", "auto", f"One of {', '.join(PLATFORMS)}.")
    define(integers, "image_size", 0, "Height and width in pixels. 0: the configuration's.")
    string("data", "auto", "auto, cifar10, synthetic, or a folder of images.")
    string("split", "test", "Split of the data.")
    define(integers, "num_images", 0, "Images to classify. 0: all of a folder or CIFAR-10, 512 synthetic.")
    string("weights", "auto", "auto, random, or the path of a checkpoint.")
    string("artifact", "", "Run this received artefact directory, with neither model code nor weights.")
    string("artifact_dir", "", "Cache of artefacts; default: in the user's cache folder.")
    string("signing_key", "", "File of the user's key; default: in the user's configuration folder.")
    string("output_dir", "", "Where report and predictions go; default: a new folder under runs/.")
    string("device_memory_limit", "", "Such as 512MiB; default: the device's memory.")
    boolean("tune", False, "In mode plan: measure this machine's cost table first, as far as it is lacking.")
    boolean("skip_bad_images", False, "Count and list images that can't be read instead of stopping.")
    integer("seed", 0, "Of random weights and synthetic images.")
    boolean("debug", False, "Show the traceback of an error.")
    integer("repeats", 3, "Of a sweep: runs of each configuration.", lower_bound=1)
    choice("search", "grid", SEARCHES, "Of a sweep: grid runs every configuration, auto the promising ones.")
    choice("objective", "images_per_second", OBJECTIVES, "Of a sweep: the report key to be best in.")
    real("max_latency_ms", None, "Of a sweep: the most that latency_ms_p99 may be.", lower_bound=0)
    real("min_top1", None, "Of a sweep: the least that top1 may be, from 0 to 1.", 0, 1)
    real("timeout_s", 1800, "Of a sweep: seconds after which a build or run is ended.", lower_bound=1)
    boolean("fresh", False, "Of a sweep: remove what an earlier one left in its directory and start over.")
    boolean("dry_run", False, "Of a sweep: list its configurations with predicted time and memory.")


@dataclasses.dataclass(frozen=True, slots=True)
class Flags:
    """Every flag of main.py with the value in force.

    Attributes:
      values: flag → value; a tuple where a sweep varies it.
      defaults: flag → default value.
      given: the flags that the command line sets.
      config: the config file in force.
    """

    values: Mapping[str, Any]
    defaults: Mapping[str, Any]
    given: frozenset[str]
    config: ConfigFile

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Flag → its values, of each flag that a sweep may vary."""
        return {name: value if isinstance(value := self[name], tuple) else (value,) for name in STARRED}

    @property
    def is_sweep(self) -> bool:
        """Whether several configurations are asked for."""
        return any(len(values) > 1 for values in self.axes.values())


def read_flags(parsed: flags.FlagValues) -> Flags:
    """The flags of a parsed command line, completed by its config file.

    Raises:
      UsageError: if the config file can't be used, or flags of a sweep are given without one.
    """
    own = {flag.name: flag for flag in parsed.flags_by_module_dict()[__name__]}
    given = frozenset(name for name, flag in own.items() if flag.present)
    values = {name: flag.value for name, flag in own.items()}
    source = values["config"]
    if source.endswith(".json"):
        reported = read_reported_flags(source)
        config = read_config_file(reported.get("config") or DEFAULT_CONFIG)
        wanted, always = {"config": "", **reported}, {"config"}
    else:
        config = read_config_file(source or DEFAULT_CONFIG)
        wanted, always = dict(config.preset.flags), set()
    for name, value in wanted.items():
        if name not in own:
            raise UsageError(f"{source} must set flags of main.py, got {name!r}")
        if name in always or name not in given:
            values[name] = _parse(own[name], value, source)
    if values["mode"] == "train" and "mesh" not in given and values["mesh"] == own["mesh"].default:
        values["mesh"] = "1x1"
    defaults = {name: flag.default for name, flag in own.items()}
    found = Flags(MappingProxyType(values), MappingProxyType(defaults), given, config)
    if not found.is_sweep and (alone := [name for name in SWEEP_FLAGS if name in given]):
        raise UsageError(
            f"--{alone[0]} needs a sweep, several values of one of {', '.join(STARRED)}, got one configuration"
        )
    return found


def _parse(flag: Any, value: Any, source: str) -> Any:
    try:
        return None if value is None and flag.default is None else flag.parser.parse(value)
    except (ValueError, TypeError) as error:
        raise UsageError(f"flag {flag.name} of {source}: {error}") from None


def read_configuration(found: Flags, chosen: Mapping[str, Any] | None = None) -> Configuration:
    """The configuration that flags make.

    Args:
      chosen: flag → value, for those that a sweep varies.

    Raises:
      UsageError: if a value makes no sense.
    """
    mode = found["mode"]
    if mode not in MODES:
        raise UsageError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "train":
        for name in ("artifact", "execution", "partition"):
            if found[name] != found.defaults[name]:
                raise UsageError(f"mode train runs no executable: leave --{name} out, got {found[name]!r}")
    if found["artifact"]:
        for name in DECIDED_BY_ARTIFACT:
            if name in found.given:
                raise UsageError(f"an artifact decides its own {name}: leave --{name} out, got {found[name]!r}")
        if mode == "compile":
            raise UsageError(f"mode compile builds an artifact: leave --artifact out, got {found['artifact']!r}")
    if mode == "compile" and found["execution"] == "online":
        raise UsageError("mode compile saves an artifact: --execution must be offline, got online")
    if found["tune"] and mode != "plan":
        raise UsageError(f"--tune belongs to mode plan, got mode {mode}")
    fields = Configuration.__dataclass_fields__
    values = {name: value for name, value in found.values.items() if name in fields} | dict(chosen or {})
    return Configuration(
        **values
        | {
            "model": found.config.preset.model,
            "mesh": MeshShape.parse(values["mesh"]),
            "explicit_config": bool(found["config"]),
        }
    )
