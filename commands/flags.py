"""The flags of main.py: the command line overrides `--config`, which overrides the defaults."""

import dataclasses
import functools
import os
import re
import textwrap
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from absl import flags

from cambrian.commands.config_file import DEFAULT_CONFIG, ConfigFile, read_config_file, read_reported_flags
from cambrian.commands.configuration import (
    CALIBRATE_S,
    EXECUTIONS,
    PATHS,
    PRECISIONS,
    RANGES,
    Configuration,
    check_range,
)
from cambrian.commands.flag_parsers import MeshParser, Named, OneOrMore, PathParser
from cambrian.commands.loadgen.settings import (
    DECIDED_BY_RULES,
    LOADGEN_FLAGS,
    SCENARIOS,
    TEST_MODES,
    LoadGenSettings,
)
from cambrian.sharding import PARTITIONS, MeshShape, UsageError
from cambrian.sharding.host import PLATFORMS

MODES = ("run", "compile", "plan", "train", "batch", "loadgen")
SEARCHES = ("grid", "auto")
OBJECTIVES = ("images_per_second", "latency_ms_p90", "latency_ms_p99", "wall_ms")
# Flags that a sweep can vary, in the order in which it names a configuration.
SWEEP_AXES = (
    "mesh",
    "threads",
    "cards",
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
# Mode → flags that have an effect in it alone.
_ONLY_OF_MODE = {"batch": ("workers", "ray_address"), "plan": ("tune",), "train": ("freeze",)}
_OF_IMAGES = ("data", "split", "num_images", "skip_bad_images")
# Mode → flags that would have no effect in it. By `data` an int8 build chooses images to calibrate on.
_NOT_OF_MODE = {
    "compile": _OF_IMAGES,
    "plan": _OF_IMAGES,
    "train": ("artifact_dir", "signing_key", "calibrate_s", "skip_bad_images"),
    "batch": ("num_images", "skip_bad_images", "device_memory_limit", "seed"),
    "loadgen": ("skip_bad_images",),
}
DECIDED_BY_ARTIFACT = (
    "model",
    "mesh",
    "batch_size",
    "precision",
    "partition",
    "image_size",
    "resize",
    "weights",
    "platform",
    "calibrate_s",
    "calibration_data",
    "max_top1_drop",
)
OF_INT8 = ("calibration_data", "max_top1_drop")
_OF_A_RESNET = ("config", "image_size", "resize", "tune")

_MODE_HELP = (
    "run: classify images. compile: build and save the artefact, print its path. "
    "plan: show the executable's plan and how long a launch takes. train: train weights. "
    "batch: classify images on a Ray cluster, by an artefact. "
    "loadgen: run a test of MLPerf's LoadGen."
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
    path = functools.partial(define, PathParser())
    strings, integers = OneOrMore(flags.ArgumentParser()), OneOrMore(flags.IntegerParser())
    string("mode", "run", _MODE_HELP)
    path(
        "model",
        "",
        "MODULE:FUNCTION, such as nets.py:mobilenet: a Python file or module, and its function that returns a "
        "cambrian.Classifier. Default: the ResNet of --config.",
    )
    path("config", "", "A Python file like those in configs/, the name of one of them, or a report.json to repeat.")
    meshes = "MODELxDATA: devices that split each layer × devices that split the batch."
    define(OneOrMore(MeshParser()), "mesh", "4x8", meshes)
    define(integers, "threads", 2, f"Host threads that decode, transfer and launch, {_range('threads')}.")
    define(integers, "cards", 1, f"Processes that each run the whole mesh on devices of their own, {_range('cards')}.")
    string("coordinator", "", "HOST:PORT at which process 0 of several that share one mesh listens; it runs on HOST.")
    integer("num_processes", 1, f"Processes, on one host or several, that share the mesh, {_range('num_processes')}.")
    integer("process_id", 0, "Number of this one of them. Process 0 writes report and predictions.")
    define(integers, "batch_size", 0, "Images per launch over all devices, a multiple of DATA. 0: chosen.")
    precisions = f"One of {', '.join(PRECISIONS)}. auto: bfloat16 where it is faster. int8: calibrated."
    define(strings, "precision", "auto", precisions)
    define(strings, "partition", "auto", f"How the model axis splits layers: one of {', '.join(PARTITIONS)}.")
    define(strings, "execution", "offline", f"One of {', '.join(EXECUTIONS)}: run a saved executable, or compile now.")
    define(strings, "platform", "auto", f"One of {', '.join(PLATFORMS)}.")
    define(integers, "image_size", 0, f"Height and width in pixels, {_range('image_size')}. 0: the configuration's.")
    integer("resize", 0, "Shorter side in pixels before the crop, for weights that don't state it. 0: chosen.")
    path("data", "auto", "auto (CIFAR-10 where it fits), cifar10, cifar10_sample, synthetic, or a folder of images.")
    string("split", "test", "Split of CIFAR-10, or of a folder SPLIT/CLASS/image.")
    define(integers, "num_images", 0, "Images to classify. 0: all, or 512 synthetic ones.")
    path("weights", "auto", "auto, random, or the path of a checkpoint; with --model, the path for its function.")
    path("artifact", "", "Run this received artefact directory, with neither model code nor weights.")
    path("artifact_dir", "", "Cache of artefacts; default: in the user's cache folder.")
    path("signing_key", "", "File of the user's key; default: in the user's configuration folder.")
    path("output_dir", "", "Folder of report and predictions; default: a new folder under runs/.")
    string("device_memory_limit", "", "Limit on each device's memory, such as 512MiB or 2GB; default: all of it.")
    string("freeze", "", "Mode train: none, or backbone to train only the last layer. Default: the recipe's.")
    path(
        "calibration_data",
        "auto",
        "int8: images to calibrate on, a folder or cifar10. auto: the data's training split, or packaged ones.",
    )
    real("max_top1_drop", 0.5, f"int8: points of top-1 that may be lost on those images, {_range('max_top1_drop')}.")
    boolean("tune", False, "Mode plan: measure all that this machine's cost table lacks, for minutes.")
    real("calibrate_s", CALIBRATE_S, "Seconds in which a build may measure a CPU that no cost table is of. 0: none.")
    choice("scenario", SCENARIOS[0], SCENARIOS, "Mode loadgen: which samples LoadGen asks for at once.")
    choice("test_mode", TEST_MODES[0], TEST_MODES, "Mode loadgen. FindPeakPerformance: Server's highest rate.")
    real("target_qps", None, "Mode loadgen: samples per second, to send (Server) or to expect (Offline).")
    real("min_duration_s", 10, f"Mode loadgen: least seconds of a test, {_range('min_duration_s')}.")
    integer("min_query_count", None, "Mode loadgen: least queries of a test. Default: what early stopping wants.")
    boolean("mlperf_rules", False, "Mode loadgen: durations, counts and bound of MLPerf's image classification.")
    boolean("skip_bad_images", False, "Skip images that can't be read, and list them in the report.")
    integer("seed", 0, "Seed of random weights, synthetic images and training.")
    integer("workers", 1, f"Mode batch: processes of the cluster that classify, {_range('workers')}.")
    string("ray_address", "", "Mode batch: HOST:PORT of a running Ray cluster, or auto. Default: this machine alone.")
    boolean("debug", False, "Show the traceback of an error.")
    integer("repeats", 3, f"Sweep: runs of each configuration, {_range('repeats')}.")
    choice("search", "grid", SEARCHES, "Sweep: grid runs every configuration, auto the promising ones.")
    choice("objective", "images_per_second", OBJECTIVES, "Sweep: report key to optimise.")
    real("max_latency_ms", None, "Sweep: upper limit on latency_ms_p99. Mode loadgen: Server's latency bound [100].")
    real("min_top1", None, f"Sweep: lower limit on top1, {_range('min_top1')}.")
    real("timeout_s", 1800, f"Sweep: seconds after which a build or run is ended, {_range('timeout_s')}.")
    boolean("fresh", False, "Sweep: remove earlier results from its directory and start over.")
    boolean("dry_run", False, "Sweep: check its input and list its configurations with predicted time and memory.")
    for flag in own_flags(values).values():
        flag.parser = Named(flag.name, flag.parser, values)


def own_flags(values: flags.FlagValues) -> dict[str, flags.Flag]:
    """Returns name → flag, of the flags that `define_flags` has registered, in that order."""
    return {flag.name: flag for flag in values.flags_by_module_dict()[__name__]}


def _range(name: str) -> str:
    low, high = RANGES[name]
    return f"{low} to {high}"


def help_text(values: flags.FlagValues) -> str:
    """Returns what `--help` prints: each flag with its meaning and default, in the order of `define_flags`."""
    lines = [
        "Classifies images with a sharded, ahead-of-time compiled ResNet or a model of your own, such as",
        "",
        "    python main.py --mesh 4x8 --threads 2",
        "",
        "Flags marked * take several values, separated by commas: every combination is run, as a sweep.",
        "--version prints the versions of Cambrian and JAX.",
        "",
    ]
    for flag in own_flags(values).values():
        name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}{'*' if flag.name in SWEEP_AXES else ''}"
        default = "" if flag.boolean or flag.default in ("", None) else f" [{flag.default}]"
        lines.append(
            textwrap.fill(
                f"{flag.help}{default}",
                width=100,
                initial_indent=f"  {name:23}",
                subsequent_indent=" " * 25,
                break_on_hyphens=False,
            )
        )
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True, slots=True)
class Flags:
    """The effective value of every flag of main.py.

    Attributes:
      values: flag → value; a tuple if a sweep varies it.
      defaults: flag → default value.
      given: flags set on the command line.
      config: the effective config file.
    """

    values: Mapping[str, Any]
    defaults: Mapping[str, Any]
    given: frozenset[str]
    config: ConfigFile

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Flag → its values, for each flag that a sweep can vary."""
        return {name: value if isinstance(value := self[name], tuple) else (value,) for name in SWEEP_AXES}

    @property
    def reported(self) -> dict[str, Any]:
        """The values as a report states them: with absolute paths, so that `--config` repeats it from any folder."""
        files = {name: () for name in ("config", "model") if re.search(r"\.py(:|$)", self[name])}  # else names
        paths = {
            name: os.path.abspath(value)
            for name, words in (PATHS | files).items()
            if (value := self[name]) and value not in words and "://" not in value
        }
        if not os.path.exists(self["weights"]):  # something else that the function of --model takes
            paths.pop("weights", None)
        return dict(self.values) | paths

    @property
    def is_sweep(self) -> bool:
        """Whether the flags make several configurations."""
        return any(len(values) > 1 for values in self.axes.values())


def read_flags(parsed: flags.FlagValues) -> Flags:
    """Completes a parsed command line with its config file.

    Raises:
      UsageError: if the config file can't be used, a flag of a sweep is out of range or given without one.
    """
    own = own_flags(parsed)
    given = frozenset(name for name, flag in own.items() if flag.present)
    values = {name: flag.value for name, flag in own.items()}
    source = values["config"]
    if source.endswith(".json"):
        reported = read_reported_flags(source)
        config = read_config_file(_parse(own["config"], reported.get("config", ""), source) or DEFAULT_CONFIG)
        wanted, always = {"config": "", **reported}, {"config"}
    else:
        config = read_config_file(source or DEFAULT_CONFIG)
        wanted, always = dict(config.preset.flags), set()
    for name, value in wanted.items():
        if name not in own:
            raise UsageError(f"{source} must set flags of main.py, got {name!r}")
        if name in always or name not in given:
            values[name] = _parse(own[name], value, source)
    defaults = {name: flag.default for name, flag in own.items()}
    if values["mode"] in ("train", "loadgen"):
        defaults["mesh"] = None  # other commands of a sweep have another one, so its commands state the mesh
        if "mesh" not in {*given, *wanted}:
            values["mesh"] = "1x1"
    for name in (*SWEEP_FLAGS, *LOADGEN_FLAGS, *_ONLY_OF_MODE["batch"]):
        if name in RANGES and (value := values[name]) is not None:
            check_range(name, value, *RANGES[name])
    found = Flags(MappingProxyType(values), MappingProxyType(defaults), given, config)
    if found.is_sweep and found["coordinator"]:
        raise UsageError(f"a sweep starts its own processes: leave --coordinator out, got {found['coordinator']!r}")
    bounds_server = values["mode"] == "loadgen" and values["scenario"] == "Server"
    of_sweeps = [name for name in SWEEP_FLAGS if name != "max_latency_ms" or not bounds_server]
    if not found.is_sweep and (alone := [name for name in of_sweeps if name in given]):
        if alone[0] == "max_latency_ms" and values["mode"] == "loadgen":
            raise UsageError(f"--max_latency_ms bounds scenario Server or ranks a sweep, got {values['scenario']}")
        raise UsageError(
            f"--{alone[0]} requires a sweep, several values of one of {', '.join(SWEEP_AXES)}, got one configuration"
        )
    return found


def _parse(flag: Any, value: Any, source: str) -> Any:
    try:
        return None if value is None and flag.default is None else flag.parser.parse(value)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None


def flags_elsewhere(mode: str, precisions: Collection[str]) -> dict[str, str]:
    """Flag → where it belongs, for each that would have no effect in a mode."""
    elsewhere = dict.fromkeys(_NOT_OF_MODE.get(mode, ()), "other modes")
    elsewhere |= {name: f"mode {only}" for only, names in _ONLY_OF_MODE.items() if only != mode for name in names}
    if "int8" in precisions:
        elsewhere.pop("data", None)
    return elsewhere


def read_configuration(found: Flags, chosen: Mapping[str, Any] | None = None) -> Configuration:
    """Makes the configuration that flags describe.

    Args:
      chosen: flag → value, for flags that a sweep varies.

    Raises:
      UsageError: if a value is invalid, or flags contradict each other.
    """
    mode = found["mode"]
    if mode not in MODES:
        raise UsageError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "train":
        for name in ("artifact", "execution", "partition"):
            if found[name] != found.defaults[name]:
                raise UsageError(f"mode train runs no executable: leave --{name} out, got {found[name]!r}")
        if found["precision"] == "int8":
            raise UsageError("mode train trains in float32 or bfloat16, got precision int8")
    if mode not in ("run", "compile") and found["cards"] != found.defaults["cards"]:
        raise UsageError(f"mode {mode} uses no cards: leave --cards out, got {found['cards']!r}")
    if mode != "run" and found["coordinator"]:
        raise UsageError(f"mode {mode} runs in one process: leave --coordinator out, got {found['coordinator']!r}")
    if found["artifact"]:
        if "artifact_dir" in found.given:
            raise UsageError(f"an artifact is in no cache: leave --artifact_dir out, got {found['artifact_dir']!r}")
        for name in DECIDED_BY_ARTIFACT:
            if name in found.given:
                raise UsageError(f"an artifact decides its own {name}: leave --{name} out, got {found[name]!r}")
        if mode == "compile":
            raise UsageError(f"mode compile builds an artifact: leave --artifact out, got {found['artifact']!r}")
    if mode == "compile" and found["execution"] == "online":
        raise UsageError("mode compile saves an artifact: --execution must be offline, got online")
    if mode == "compile" and found["output_dir"]:
        raise UsageError(f"mode compile writes to --artifact_dir: leave --output_dir out, got {found['output_dir']!r}")
    for name in OF_INT8:
        if name in found.given and "int8" not in found.axes["precision"]:
            raise UsageError(f"--{name} belongs to precision int8, got {found['precision']}")
    user_model = "" if found["artifact"] else found["model"]
    if user_model:
        if mode == "train":
            raise UsageError(f"mode train trains ResNets: leave --model out, got {user_model!r}")
        for name in _OF_A_RESNET:
            if found[name] != found.defaults[name]:
                raise UsageError(f"--{name} belongs to a ResNet: leave it out with --model, got {found[name]!r}")
    for name, where in flags_elsewhere(mode, found.axes["precision"]).items():
        if name in found.given and found[name] != found.defaults[name]:  # a report or a config may be of another mode
            raise UsageError(f"--{name} belongs to {where}, got mode {mode}")
    fields = Configuration.__dataclass_fields__
    values = {name: value for name, value in found.values.items() if name in fields} | dict(chosen or {})
    if mode == "loadgen":
        if found["mlperf_rules"] and (decided := [name for name in DECIDED_BY_RULES if name in found.given]):
            raise UsageError(f"MLPerf's rules decide {decided[0]}: leave --{decided[0]} out, got {found[decided[0]]}")
        test = LoadGenSettings.of(found.values)
        values["batch_size"] = values["batch_size"] or test.batch_size(MeshShape.parse(values["mesh"]))
    elif others := [name for name in LOADGEN_FLAGS if name in found.given]:
        raise UsageError(f"--{others[0]} belongs to mode loadgen, got mode {mode}")
    return Configuration(
        **values
        | {
            "model": found.config.preset.model,
            "mesh": MeshShape.parse(values["mesh"]),
            "explicit_config": bool(found["config"]),
            "user_model": user_model,
        }
    )
