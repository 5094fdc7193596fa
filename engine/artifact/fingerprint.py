"""The fingerprint: everything that machine code compiled by XLA depends on, beside the program itself."""

import os
import platform
from collections.abc import Sequence
from typing import Any

import jax
import jaxlib.version

from cambrian.sharding.host import cpu_features, cpu_model, cpu_threads

Fingerprint = dict[str, Any]

# These change where a process runs or how long it waits, not the code it compiles.
_IRRELEVANT_XLA_FLAGS = frozenset(
    {
        "--xla_force_host_platform_device_count",
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds",
        "--xla_cpu_collective_call_terminate_timeout_seconds",
        "--xla_cpu_collective_timeout_seconds",
    }
)


def fingerprint(devices: Sequence[jax.Device]) -> Fingerprint:
    """What native code compiled now for `devices` depends on; JSON-compatible, from words to text, number or list.

    Device ids are part of it because XLA bakes them into the executable, the size of the thread pool because it
    decides how XLA:CPU cuts its loops.
    """
    device = devices[0]
    entries: Fingerprint = {
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "platform": device.platform,
        "platform version": device.client.platform_version,
        "device kind": device.device_kind,
        "device ids": [d.id for d in devices],
        "XLA flags": _relevant_xla_flags(),
    }
    if device.platform == "cpu":
        entries |= {
            "machine": platform.machine(),
            "CPU model": cpu_model(),
            "CPU features": sorted(cpu_features()),
            "CPU threads": cpu_threads(),
        }
    return entries


def difference(built_with: Fingerprint, here: Fingerprint) -> str | None:
    """Names in one line the first entry that differs, with both values; None if the fingerprints are equal."""
    for name in [*here, *(name for name in built_with if name not in here)]:
        built, found = built_with.get(name), here.get(name)
        if built == found:
            continue
        if isinstance(built, list) and isinstance(found, list):
            built, found = _only_in(built, found), _only_in(found, built)
        return f"built with {name} {_words(built)}, here {_words(found)}"
    return None


def _only_in(one: list, other: list) -> list:
    return [item for item in one if item not in other]


def _words(value: Any) -> str:
    if not isinstance(value, list):
        return "unknown" if value is None else str(value)
    if not value:
        return "none besides"
    return ", ".join(map(str, value[:4])) + (f" and {len(value) - 4} more" if len(value) > 4 else "")


def _relevant_xla_flags() -> list[str]:
    flags = os.environ.get("XLA_FLAGS", "").split()
    last = {flag.split("=", 1)[0]: flag for flag in flags}  # of a flag given twice XLA takes the last
    return sorted(flag for name, flag in last.items() if name not in _IRRELEVANT_XLA_FLAGS)
