"""A Configuration: everything that one run depends on, checked on construction."""

import dataclasses
import os
import re
import reprlib
import stat
from pathlib import Path
from types import MappingProxyType

from cambrian.sharding import PARTITIONS, MeshShape, Preprocessing, UsageError
from cambrian.sharding.host import PLATFORMS, divide_host, launches_at_once

PRECISIONS = ("auto", "float32", "bfloat16", "int8")
EXECUTIONS = ("offline", "online")
CALIBRATE_S = 15.0
# Flag → its least and its largest value; 0 leaves batch_size, image_size, resize and num_images to the configuration.
RANGES = MappingProxyType(
    {
        "threads": (1, 1024),
        "cards": (1, 1024),
        "num_processes": (1, 1024),
        "process_id": (0, 1023),
        "batch_size": (0, 2**20),
        "image_size": (0, 8192),
        "resize": (0, 8192),
        "num_images": (0, 10**9),
        "seed": (0, 2**32 - 1),
        "max_top1_drop": (0, 100),
        "repeats": (1, 1000),
        "max_latency_ms": (0, 10**9),
        "min_top1": (0, 1),
        "workers": (1, 2**16),
        "timeout_s": (1, 7 * 24 * 3600),
        "calibrate_s": (0, 3600),
        "min_duration_s": (0, 7 * 24 * 3600),
        "min_query_count": (1, 10**9),
    }
)
MAX_DEVICES = 2**16
_LEAST_BATCH = 8  # that is chosen: what a launch takes by itself isn't predicted
MAX_CLASSES = 10**6
_UNITS = {"B": 1} | {
    prefix + unit: base**power
    for unit, base in (("iB", 1024), ("B", 1000))
    for power, prefix in enumerate("KMGT", start=1)
}
_MAX_BYTES = 2**50
# Fields that hold a path → the values that are words instead.
PATHS = {
    "data": ("auto", "cifar10", "cifar10_sample", "synthetic"),
    "calibration_data": ("auto", "cifar10", "cifar10_sample"),
    "weights": ("auto", "random"),
    "artifact": (),
    "artifact_dir": (),
    "signing_key": (),
    "output_dir": (),
}


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raises UsageError unless `low <= value <= high`, which NaN never satisfies."""
    if not low <= value <= high:
        raise UsageError(f"{name} must be from {low} to {high}, got {reprlib.repr(value)}")


def check_type(name: str, value: object, kind: type) -> None:
    """Raises UsageError unless `value` is a `kind`; a bool is no number, an int is also a float."""
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{name} must be of type {kind.__name__}, got {reprlib.repr(value)}")


def check_path(name: str, path: str) -> None:
    """Refuses a FIFO, device or socket, whose reading may never end; a missing path is left to its reader.

    Raises:
      UsageError: if `path` is something else than a file or a folder, or its name can't be used.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{name} must be a path that can be read, got {reprlib.repr(path)}: {reason}") from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = "FIFO" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise UsageError(f"{name} must be a file or a folder, got the {kind} {path}")


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model runs, and how its images are preprocessed.

    Attributes:
      depth: number of layers of the ResNet: 18, 34, 50, 101 or 152.
      stem: `cifar` (3×3, stride 1) or `imagenet` (7×7, stride 2, max pooling).
      num_classes: number of logits.
      labels: class names in the order of the logits; empty if unknown.

    Raises:
      UsageError: if a value has the wrong type or is out of range.
    """

    depth: int
    stem: str
    num_classes: int
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()

    def __post_init__(self):
        kinds = (("depth", int), ("num_classes", int), ("stem", str), ("preprocessing", Preprocessing))
        for name, kind in (*kinds, ("labels", tuple)):
            check_type(name, getattr(self, name), kind)
        for label in self.labels:
            check_type("each label", label, str)
        check_range("depth", self.depth, 1, 1000)
        check_range("num_classes", self.num_classes, 1, MAX_CLASSES)
        for side in self.preprocessing.size:
            check_range("image_size", side, 1, RANGES["image_size"][1])
        if self.labels and len(self.labels) != self.num_classes:
            raise UsageError(f"labels must name all {self.num_classes} classes, got {len(self.labels)}")


@dataclasses.dataclass(frozen=True, slots=True)
class Preset:
    """What a file of configs/ defines as `CONFIG`: a model, and (flag, text) pairs that the command line overrides.

    Raises:
      UsageError: if a value has the wrong type.
    """

    model: ModelConfig
    flags: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        check_type("model", self.model, ModelConfig)
        check_type("flags", self.flags, tuple)
        for pair in self.flags:
            if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
                raise UsageError(f"flags must be pairs of strings, (flag, value), got {reprlib.repr(pair)}")


@dataclasses.dataclass(frozen=True, slots=True)
class Configuration:
    """One run: the model and the flags of main.py that determine its executable and its inputs.

    Attributes:
      model: the ResNet; `user_model` and `artifact` take its place.
      explicit_config: whether the user named `model`, so that weights must not contradict it.
      user_model: MODULE:FUNCTION that makes a classifier.

    Raises:
      UsageError: if a value is out of range, or a path leads to a FIFO, device or socket.
    """

    model: ModelConfig
    mesh: MeshShape
    explicit_config: bool = False
    user_model: str = ""
    threads: int = 2
    cards: int = 1
    coordinator: str = ""
    num_processes: int = 1
    process_id: int = 0
    batch_size: int = 0
    precision: str = "auto"
    partition: str = "auto"
    execution: str = "offline"
    platform: str = "auto"
    image_size: int = 0
    resize: int = 0
    num_images: int = 0
    data: str = "auto"
    split: str = "test"
    weights: str = "auto"
    artifact: str = ""
    artifact_dir: str = ""
    signing_key: str = ""
    output_dir: str = ""
    device_memory_limit: str = ""
    skip_bad_images: bool = False
    seed: int = 0
    freeze: str = ""
    calibrate_s: float = CALIBRATE_S
    calibration_data: str = "auto"
    max_top1_drop: float = 0.5

    def __post_init__(self):
        for name, choices in (
            ("precision", PRECISIONS),
            ("partition", PARTITIONS),
            ("execution", EXECUTIONS),
            ("platform", PLATFORMS),
        ):
            if (value := getattr(self, name)) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        sized = ("threads", "cards", "num_processes", "process_id", "batch_size", "image_size", "resize", "num_images")
        for name in (*sized, "seed", "calibrate_s", "max_top1_drop"):
            check_range(name, getattr(self, name), *RANGES[name])
        if self.mesh.num_devices > MAX_DEVICES:
            raise UsageError(f"mesh must have at most {MAX_DEVICES} devices, got {self.mesh}")
        if self.batch_size:
            self.mesh.check_batch_size(self.batch_size)
        if self.threads < self.cards:
            divide_host(self.cards, self.mesh.num_devices, self.platform)  # refuses more than the host has
            raise UsageError(f"threads must be at least one for each of {self.cards} cards, got {self.threads}")
        if self.cards > 1 and self.execution == "online":
            raise UsageError("execution must be offline with several cards, which load one artefact, got online")
        if self.coordinator or self.num_processes > 1 or self.process_id:
            self._check_processes()
        if self.artifact and self.execution == "online":
            raise UsageError("execution must be offline to run an artifact, got online")
        if self.resize and (self.explicit_config or self.weights in ("auto", "random")):
            raise UsageError(f"resize belongs to --weights PATH without --config, got {self.resize}")
        if self.device_memory_limit:
            parse_bytes(self.device_memory_limit)
        if "://" in self.output_dir:
            raise UsageError(f"output_dir must be a folder of this machine, got {self.output_dir}")
        for name, words in PATHS.items():
            path = getattr(self, name)
            if words and not path:  # which would stand for the current folder
                raise UsageError(f"{name} must be {', '.join(words)} or a path, got ''")
            if path and path not in words:
                check_path(name, path)

    def _check_processes(self) -> None:
        if not self.coordinator:
            raise UsageError(
                "several processes require --coordinator HOST:PORT, got only "
                f"--num_processes {self.num_processes} and --process_id {self.process_id}"
            )
        if self.num_processes == 1:
            raise UsageError("a coordinator is of several processes: expected --num_processes of at least 2, got 1")
        if self.process_id >= self.num_processes:
            raise UsageError(f"process_id must be below num_processes of {self.num_processes}, got {self.process_id}")
        _ = self.coordinator_address
        if self.cards > 1:
            raise UsageError(
                f"each of several processes runs the mesh on one card: leave --cards out, got {self.cards}"
            )
        if self.execution == "online":
            raise UsageError("execution must be offline in several processes, which load one artefact, got online")
        if not self.artifact:
            self.mesh.divided(self.num_processes)
            if self.user_model:  # its build measures launches on the mesh
                raise UsageError(
                    "several processes run a model of yours from its artefact: expected --artifact DIRECTORY of "
                    f"--mode compile, got --model {self.user_model}"
                )

    @property
    def coordinator_address(self) -> tuple[str, int]:
        """Host and port of the coordinator.

        Raises:
          UsageError: if it isn't HOST:PORT.
        """
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
            raise UsageError(
                f"coordinator must be HOST:PORT, such as 10.0.0.1:7000, got {reprlib.repr(self.coordinator)}"
            )
        return host.removeprefix("[").removesuffix("]"), int(port)

    @property
    def named_weights(self) -> str:
        """The path of the weights, else the user's function that makes the model; empty for a ResNet without a path."""
        return self.weights if self.weights not in ("auto", "random") else self.user_model

    @property
    def device_memory_limit_bytes(self) -> int | None:
        """The limit on what a device holds, in bytes; None for the device's memory."""
        return parse_bytes(self.device_memory_limit) if self.device_memory_limit else None

    def check_output(self, path: Path) -> None:
        """Raises UsageError if an output folder lies in a folder of images: it would replace files, and become data."""
        for name in ("data", "calibration_data"):
            folder = getattr(self, name)
            if folder not in PATHS[name] and path.resolve().is_relative_to(Path(folder).resolve()):
                raise UsageError(f"output_dir must be a folder outside the images to read, got {path} in {folder}")

    @property
    def of_a_card(self) -> "Configuration":
        """What each card runs: the whole mesh, with its share of the host threads."""
        return dataclasses.replace(self, cards=1, threads=-(-self.threads // self.cards))

    @property
    def launches_at_once(self) -> int:
        """The number of launches that compute at once on a card; an undecided platform counts as a CPU."""
        if self.platform not in ("auto", "cpu"):
            return 1
        # A classifier of the user's has a precision of its own, whose launches compute in turn.
        precision = "float32" if self.user_model and self.precision == "auto" else self.precision
        return launches_at_once(self.mesh.num_devices, self.of_a_card.threads, precision, self.cards)


def parse_bytes(text: str) -> int:
    """Parses a size such as `512MiB` or `2GB`, with a unit from B to TiB or TB, to bytes.

    Raises:
      UsageError: if the text has another form, or the size is above 1024 TiB.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)\s*", text)
    if match is None or match[2] not in _UNITS:
        units = ", ".join(_UNITS)
        raise UsageError(
            f"device_memory_limit must be a number and one of {units}, such as 512MiB, got {reprlib.repr(text)}"
        )
    size = float(match[1]) * _UNITS[match[2]]
    if size > _MAX_BYTES:
        raise UsageError(f"device_memory_limit must be at most 1024TiB, got {reprlib.repr(text)}")
    return int(size)


def batch_sizes(mesh: MeshShape, platform: str) -> list[int]:
    """Returns the global batch sizes to choose from: on CPU also smaller ones, whose latency is shorter.

    All are multiples of the number of devices, so that the model axis can cut samples.
    """
    largest = default_batch_size(mesh, platform)
    if platform != "cpu":
        return [largest]
    powers = (mesh.num_devices * 2**power for power in range(largest.bit_length()))
    return [size for size in powers if _LEAST_BATCH <= size < largest] + [largest]


def default_batch_size(mesh: MeshShape, platform: str) -> int:
    """Returns a global batch size large enough for efficient matrix products, and larger on accelerators.

    It is a multiple of the number of devices, so that the model axis can cut samples.
    """
    per_device, least = (8, 64) if platform == "cpu" else (256, 256)
    return mesh.num_devices * max(per_device, -(-least // mesh.num_devices))
