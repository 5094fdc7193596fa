"""The time since this process was started."""

import os
import sys
import time
from pathlib import Path

import psutil


def milliseconds_since_process_start() -> float:
    """How long ago the system started this process, interpreter and imports included."""
    if sys.platform == "linux":
        # Since boot, in ticks of 10 ms; psutil adds the time of boot, which the kernel gives in whole seconds.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return 1e3 * (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
    return 1e3 * (time.time() - psutil.Process().create_time())
