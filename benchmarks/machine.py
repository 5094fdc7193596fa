"""The circumstances of a measurement."""

import importlib.metadata
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

from absl import flags

from cambrian.engine.artifact.fingerprint import versions
from cambrian.sharding.host import cpu_model


def circumstances(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Returns date, flags of the script, machine, and versions of our dependencies and of installed `packages`."""
    installed = {}
    for package in packages:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "flags": {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])},
        "cpu": cpu_model(),
        "num_cpus": os.cpu_count(),
        "versions": versions() | installed,
    }
