"""What a cost table measured here is measured on, and where it is kept."""

import re
from pathlib import Path

import jax

from cambrian.sharding.host import cache_dir, cpu_model, host_cores


def machine_of(platform: str) -> dict[str, str]:
    """Facts of this machine that its costs depend on."""
    if platform != "cpu":
        return {"device": jax.devices(platform)[0].device_kind, "jax": jax.__version__}
    return {"device": cpu_model(), "jax": jax.__version__, "cores": str(host_cores())}


def own_table_path(platform: str) -> Path:
    """Where the table measured on this machine is kept: `costs` in the user's cache folder."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", " ".join(machine_of(platform).values()))
    return cache_dir() / "costs" / f"{name}.jsonl"
