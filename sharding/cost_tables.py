"""Where the cost table measured on this machine is kept."""

import os
import re
from pathlib import Path

import jax

from sharding.cpu import cpu_model, host_cores


def machine_of(platform: str) -> dict[str, str]:
    """What a table measured now, here, is measured on."""
    if platform != "cpu":
        return {"device": jax.devices(platform)[0].device_kind, "jax": jax.__version__}
    return {"device": cpu_model(), "jax": jax.__version__, "cores": str(host_cores())}


def own_table_path(platform: str) -> Path:
    """Where the table measured on this machine is kept: `cambrian/costs` in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"[^A-Za-z0-9.]+", "-", " ".join(machine_of(platform).values()))
    return cache / "cambrian" / "costs" / f"{name}.jsonl"
