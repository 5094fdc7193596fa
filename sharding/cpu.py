"""What the host's CPU is."""

import os
import platform as host


def host_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def computes_bfloat16(platform: str) -> bool:
    """Whether the platform multiplies bfloat16 natively, and faster than float32.

    So do GPUs, TPUs, and CPUs with AMX, or with AVX512-BF16 if they aren't Intel's: those take 1.3 to 1.5 times as long
    for it as for float32 in oneDNN's and XLA's products (measured on a Xeon of the fifth generation, its AMX hidden).
    """
    if platform != "cpu":
        return True
    return "amx_bf16" in cpu_features() or ("avx512_bf16" in cpu_features() and "Intel" not in cpu_model())


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
