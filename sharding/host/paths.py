"""The user's folders, by the XDG base directory specification."""

import os
from pathlib import Path

from cambrian.sharding.errors import UsageError


def cache_dir() -> Path:
    """Returns `cambrian` in XDG_CACHE_HOME, by default in ~/.cache."""
    return user_folder("XDG_CACHE_HOME", ".cache") / "cambrian"


def config_dir() -> Path:
    """Returns `cambrian` in XDG_CONFIG_HOME, by default in ~/.config."""
    return user_folder("XDG_CONFIG_HOME", ".config") / "cambrian"


def user_folder(variable: str, in_home: str) -> Path:
    """Returns the folder that an environment variable names, by default `in_home` in the user's home folder.

    A leading `~` stands for the home folder also where no shell has seen it.

    Raises:
      UsageError: if the system knows no home folder of this user, as in a container that runs as any user.
    """
    if folder := os.environ.get(variable):
        return Path(os.path.expanduser(folder))
    try:
        return Path.home() / in_home
    except RuntimeError:
        raise UsageError(f"HOME or {variable} must be set, as this user has no home folder, got neither") from None
