"""All that the results of a sweep depend on, apart from its command."""

import os
import platform

import psutil

from engine.versions import versions


def environment(source: str) -> dict[str, str]:
    """Facts in words: processor, memory, versions, and `source`, a digest of the code that builds programs."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        **versions(),
        "source": source[:16],
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
