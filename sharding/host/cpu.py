"""The host's CPU: its vendor, model, features, caches and cores."""

import functools
import os
import platform as host
from pathlib import Path

from cambrian.sharding.host.control_groups import control_group_cores

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def host_cores() -> int:
    """Returns the number of cores that this process may compute on at a time."""
    return min(permitted_cores(), control_group_cores() or permitted_cores())


def permitted_cores() -> int:
    """Returns the number of cores that this process may run on: more than the quota of its container may be."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def computes_bfloat16(platform: str) -> bool:
    """Whether the platform multiplies bfloat16 natively and faster than float32.

    True for GPUs, TPUs, CPUs with AMX, and CPUs with AVX512-BF16 except Intel's. On those, matrix products of oneDNN
    and XLA take 1.3 to 1.5 times as long in bfloat16 as in float32 (measured on a fifth-generation Xeon with AMX
    hidden).
    """
    if platform != "cpu":
        return True
    return "amx_bf16" in cpu_features() or ("avx512_bf16" in cpu_features() and cpu_vendor() != "GenuineIntel")


def cpu_model() -> str:
    """Returns the name of the CPU as the kernel lists it, or as Python does where the kernel lists none."""
    return _cpuinfo("model name") or host.processor() or host.machine()


def cpu_vendor() -> str:
    """Returns the vendor as the kernel names it, such as AuthenticAMD; on ARM the number of the implementer."""
    return _cpuinfo("vendor_id", "CPU implementer") or host.machine()


def cpu_caches_kib() -> tuple[int, ...]:
    """Returns the KiB of the caches that hold data for a core, from the first level on; empty where none are listed."""
    return tuple(kib for kib, _ in _caches())


def cache_share_bytes() -> int | None:
    """Returns a core's share of the last-level cache in bytes, None where none is listed."""
    caches = _caches()
    return 1024 * caches[-1][0] // caches[-1][1] if len(caches) >= 3 else None


@functools.cache
def _caches() -> tuple[tuple[int, int], ...]:
    """(KiB, number of cores that share it) of each cache that holds data for a core, from the first level on."""
    found = {}
    for cache in _CACHES.glob("index*"):
        names = ("level", "type", "size", "shared_cpu_map")
        try:
            level, kind, size, sharers = ((cache / name).read_text().strip() for name in names)
            if kind != "Instruction":
                cores = int(sharers.replace(",", ""), base=16).bit_count()
                found[int(level)] = int(size.removesuffix("K")), max(1, cores)
        except (OSError, ValueError):
            continue
    return tuple(found[level] for level in sorted(found))


def cpu_features() -> frozenset[str]:
    """Returns the feature flags of the CPU as the kernel lists them; empty where it lists none."""
    return frozenset(_cpuinfo("flags", "Features").split())


@functools.cache
def _cpuinfo(*names: str) -> str:
    """The value of the first line of /proc/cpuinfo that starts with one of the names; empty if there is none."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(names)), "")
    except OSError:
        return ""
