"""Digests of all that a built program depends on besides its configuration."""

import hashlib
import json
from pathlib import Path

from cambrian.models.costs.machine import tuned_part

_PACKAGES = ("commands", "configs", "engine", "models", "sharding")
_ROOT = Path(__file__).resolve().parents[2]
_CODE_AND_DATA = (".py", ".jsonl", ".zip")


def code_digest() -> str:
    """A digest of Cambrian's code and data."""
    return source_digest(*(_ROOT / package for package in _PACKAGES))


def build_digest(platform: str) -> str:
    """A digest of everything but the configuration that a built program depends on.

    That is all of Cambrian's code and data, and the cost table that `--tune` measured on this machine. What builds
    measure for themselves afterwards doesn't count: each would make the others' artefacts be built anew.
    """
    return hashlib.sha256((code_digest() + tuned_part(platform)).encode()).hexdigest()


def source_digest(*folders: Path) -> str:
    """A digest of the code and data in folders: contents, and names relative to each folder."""
    files = {
        f"{folder.name}/{path.relative_to(folder).as_posix()}": hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in _CODE_AND_DATA
    }
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
