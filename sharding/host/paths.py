"""The user's folders, by the XDG base directory specification."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Returns `cambrian` in XDG_CACHE_HOME, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cambrian"


def config_dir() -> Path:
    """Returns `cambrian` in XDG_CONFIG_HOME, by default in ~/.config."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "cambrian"
