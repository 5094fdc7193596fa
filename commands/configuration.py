"""A Configuration: everything one run depends on, checked when it is made."""

import dataclasses
import re

from cambrian.sharding import PARTITIONS, MeshShape, UsageError
from cambrian.sharding.host import PLATFORMS, launches_at_once

PRECISIONS = ("auto", "float32", "bfloat16")
EXECUTIONS = ("offline", "online")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # Pillow's filters
_UNITS = {unit: 1024**power for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB"))}


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model runs, and what its images look like.

    Attributes:
      depth: layers of the ResNet: 18, 34, 50, 101 or 152.
      stem: `cifar` (3×3, stride 1) or `imagenet` (7×7, stride 2, max pooling).
      num_classes: number of logits.
      image_size: height and width in pixels.
      crop_fraction: the centre square kept of an image whose shorter side was resized to image_size / crop_fraction.
      mean, std: per channel, of pixels scaled to 0…1.
      labels: class names in the order of the logits; empty if unknown.
      interpolation: how images are resized, one of INTERPOLATIONS.
    """

    depth: int
    stem: str
    num_classes: int
    image_size: int
    crop_fraction: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    labels: tuple[str, ...] = ()
    interpolation: str = "bilinear"

    def __post_init__(self):
        if self.labels and len(self.labels) != self.num_classes:
            raise UsageError(f"labels are needed for {self.num_classes} classes, got {len(self.labels)}")
        if not 0 < self.crop_fraction <= 1:
            raise UsageError(f"crop_fraction must be above 0 and at most 1, got {self.crop_fraction}")
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")


@dataclasses.dataclass(frozen=True, slots=True)
class Preset:
    """What a file of configs/ defines as `CONFIG`: a model, and values of flags that the command line overrides."""

    model: ModelConfig
    flags: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Configuration:
    """One run: the model and the flags of main.py that decide its executable and its inputs.

    Raises:
      UsageError: if a value is out of its range, stating the range.
    """

    model: ModelConfig
    mesh: MeshShape
    explicit_config: bool = False  # whether the user named `model`, so that weights must not contradict it
    threads: int = 2
    batch_size: int = 0
    precision: str = "auto"
    partition: str = "auto"
    execution: str = "offline"
    platform: str = "auto"
    image_size: int = 0
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

    def __post_init__(self):
        for name, choices in (
            ("precision", PRECISIONS),
            ("partition", PARTITIONS),
            ("execution", EXECUTIONS),
            ("platform", PLATFORMS),
        ):
            if (value := getattr(self, name)) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if self.threads < 1:
            raise UsageError(f"threads must be at least 1, got {self.threads}")
        for name in ("batch_size", "image_size", "num_images", "seed"):
            if (value := getattr(self, name)) < 0:
                raise UsageError(f"{name} must be at least 0, got {value}")
        if self.batch_size:
            self.mesh.check_batch_size(self.batch_size)
        if self.artifact and self.execution == "online":
            raise UsageError("execution must be offline to run an artifact, got online")
        if self.device_memory_limit:
            parse_bytes(self.device_memory_limit)

    @property
    def device_memory_limit_bytes(self) -> int | None:
        """What a device may hold; None for its memory."""
        return parse_bytes(self.device_memory_limit) if self.device_memory_limit else None

    @property
    def launches_at_once(self) -> int:
        """The launches that compute at once; where the platform is still to be chosen, those on a CPU."""
        on_cpu = self.platform in ("auto", "cpu")
        return launches_at_once(self.mesh.num_devices, self.threads, self.precision) if on_cpu else 1


def parse_bytes(text: str) -> int:
    """Reads a size such as `512MiB`, with a unit from B to TiB.

    Raises:
      UsageError: if the text has another form.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)\s*", text)
    if match is None or match[2] not in _UNITS:
        raise UsageError(f"a size is a number with a unit of {', '.join(_UNITS)}, such as 512MiB, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def default_batch_size(mesh: MeshShape, platform: str) -> int:
    """The batch that a configuration chooses: large enough for efficient matrix products, larger on accelerators.

    A multiple of all devices, so that the model axis may cut samples.
    """
    per_device, least = (8, 64) if platform == "cpu" else (256, 256)
    return mesh.num_devices * max(per_device, -(-least // mesh.num_devices))
