"""Config files: Python files that define a model, values of flags, and how to train; report.json of an earlier run."""

import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

from cambrian.commands.configuration import Preset
from cambrian.sharding import UsageError

DEFAULT_CONFIG = "resnet101_cifar10"
_CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclasses.dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a config file defines.

    Attributes:
      preset: its `CONFIG`.
      recipe: its `RECIPE`, of whatever type; None if it defines none.
    """

    path: Path
    preset: Preset
    recipe: Any = None


def read_config_file(config: str) -> ConfigFile:
    """Executes a config file, given as the path of a Python file or as a name in configs/.

    Raises:
      UsageError: if there is no such file, or its `CONFIG` isn't a preset.
    """
    path = Path(config) if config.endswith(".py") else _CONFIGS / f"{config}.py"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in _CONFIGS.glob("*.py") if p.stem != "__init__"))
        raise UsageError(f"config must be a .py or report.json file, or one of {names}; got {config!r}")
    names = runpy.run_path(str(path))
    preset = names.get("CONFIG")
    if not isinstance(preset, Preset):
        raise UsageError(f"{path} must define CONFIG, a Preset, got {type(preset).__name__}")
    return ConfigFile(path, preset, names.get("RECIPE"))


def read_reported_flags(report: str) -> dict[str, Any]:
    """The flags of a run, from its report.json, without its output folder: a rerun must not overwrite the report.

    Raises:
      UsageError: if the file can't be read or holds no flags.
    """
    try:
        reported = dict(json.loads(Path(report).read_text())["flags"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"config must be a report.json with flags, got {report}: {error}") from None
    reported.pop("output_dir", None)
    return reported
