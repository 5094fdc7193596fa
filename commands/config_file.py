"""Config files: Python files that define a model, flags and a training recipe, or the report.json of an earlier run."""

import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

from cambrian.commands.configuration import Preset, check_path
from cambrian.sharding import UsageError

DEFAULT_CONFIG = "resnet101_cifar10"
_CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclasses.dataclass(frozen=True, slots=True)
class ConfigFile:
    """The definitions of a config file.

    Attributes:
      preset: its `CONFIG`.
      recipe: its `RECIPE`, of any type; None if it defines none.
    """

    path: Path
    preset: Preset
    recipe: Any = None


def read_config_file(config: str) -> ConfigFile:
    """Executes a config file, given as the path of a Python file or as a name in configs/.

    Raises:
      UsageError: if there is no such file, it raises or exits, or its `CONFIG` isn't a preset.
    """
    path = Path(config) if config.endswith(".py") else _CONFIGS / f"{config}.py"
    check_path("config", str(path))
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in _CONFIGS.glob("*.py") if p.stem != "__init__"))
        raise UsageError(f"config must be a .py or report.json file, or one of {names}; got {config!r}")
    try:
        names = runpy.run_path(str(path))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a config file doesn't end the program
        reason = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
        raise UsageError(f"config {path} must run without an error, got {reason}") from error
    preset = names.get("CONFIG")
    if not isinstance(preset, Preset):
        raise UsageError(f"{path} must define CONFIG, a Preset, got {type(preset).__name__}")
    return ConfigFile(path, preset, names.get("RECIPE"))


def read_reported_flags(report: str) -> dict[str, Any]:
    """Reads the flags of a run from its report.json, except its output folder, which a rerun must not overwrite.

    Raises:
      UsageError: if the file can't be read or holds no flags.
    """
    check_path("config", report)
    try:
        reported = dict(json.loads(Path(report).read_bytes())["flags"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} {error}"
        raise UsageError(f"config must be a report.json with flags, got {report}: {reason}") from None
    reported.pop("output_dir", None)
    return reported
