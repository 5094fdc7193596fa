"""The machine on which a cost table is measured, and the path of its own table."""

import re
from pathlib import Path

import jax

from cambrian.sharding.host import cache_dir, cpu_model, host_cores


def machine_of(platform: str) -> dict[str, str]:
    """Returns the facts of this machine that costs depend on."""
    if platform != "cpu":
        return {"device": jax.devices(platform)[0].device_kind, "jax": jax.__version__}
    return {"device": cpu_model(), "jax": jax.__version__, "cores": str(host_cores())}


def own_table_path(platform: str) -> Path:
    """Returns the path of the table measured on this machine, in `costs` in the user's cache folder."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", " ".join(machine_of(platform).values()))
    return cache_dir() / "costs" / f"{name}.jsonl"
