"""The fingerprint: everything that XLA's machine code depends on beside the program itself. Versions of packages."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax
import jaxlib.version

from cambrian.sharding.host import cpu_features, cpu_model, cpu_threads

Fingerprint = dict[str, Any]

_MAX_TEXT = 60  # characters of a text that a message shows

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
    """Returns what native code compiled now for `devices` depends on: name → text, number, or list of these.

    It includes the device ids, because XLA bakes them into the executable, and the size of the thread pool, because it
    decides how XLA:CPU divides its loops.
    """
    device = devices[0]
    entries: Fingerprint = {
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "platform": device.platform,
        "platform version": device.client.platform_version,
        "device kind": device.device_kind,
        "device ids": [d.id for d in devices],
        "XLA flags": relevant_xla_flags(),
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
    """Describes the first entry that differs, by both values, in one line; None if the fingerprints are equal.

    Of lists and long texts it shows the parts that differ.
    """
    for name in [*here, *(name for name in built_with if name not in here)]:
        built, found = built_with.get(name), here.get(name)
        if built == found:
            continue
        if isinstance(built, list) and isinstance(found, list):
            built, found = _only_in(built, found), _only_in(found, built)
        elif isinstance(built, str) and isinstance(found, str):
            built, found = _from_difference(built, found), _from_difference(found, built)
        return f"built with {name} {_words(built)}, here {_words(found)}"
    return None


def _only_in(one: list, other: list) -> list:
    only = [item for item in one if item not in other]
    if only or any(item not in one for item in other):
        return only
    return [item for item, against in zip(one, other, strict=False) if item != against] or one  # in another order


def _from_difference(one: str, other: str) -> str:
    """The text; of a long one, the part around the first character in which it differs from the other."""
    if len(one) <= _MAX_TEXT:
        return one
    first = next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))
    start = max(0, first - 20)
    return ("…" if start else "") + one[start : start + _MAX_TEXT] + ("…" if len(one) > start + _MAX_TEXT else "")


def _words(value: Any) -> str:
    if not isinstance(value, list):
        return "unknown" if value is None else str(value)
    if not value:
        return "none besides"
    return ", ".join(map(str, value[:4])) + (f" and {len(value) - 4} more" if len(value) > 4 else "")


def relevant_xla_flags() -> list[str]:
    """Returns the flags in XLA_FLAGS that decide the code that XLA compiles."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    last = {flag.split("=", 1)[0]: flag for flag in flags}  # of a flag given twice XLA takes the last
    return sorted(flag for name, flag in last.items() if name not in _IRRELEVANT_XLA_FLAGS)


def versions() -> dict[str, str]:
    """Returns package → version, with the versions of Python and the operating system."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {"python": platform.python_version(), "platform": platform.platform(), **packages}
