"""What the host's CPU is."""

import os
import platform as host


def host_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def computes_bfloat16(platform: str) -> bool:
    """Whether the platform multiplies bfloat16 natively: GPUs and TPUs, and CPUs with AVX512-BF16 or AMX."""
    if platform != "cpu":
        return True
    return bool({"avx512_bf16", "amx_bf16"} & cpu_features())


def cpu_model() -> str:
    """The CPU's name as the kernel lists it, else as Python does."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return host.processor()


def cpu_features() -> frozenset[str]:
    """The CPU's feature flags as the kernel lists them; empty where it lists none."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()
