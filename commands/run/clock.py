"""Time since the start of this process."""

import os
import sys
import time
from pathlib import Path

import psutil


def milliseconds_since_process_start() -> float:
    """Returns the time since the system started this process, including interpreter and imports."""
    if sys.platform == "linux":
        # Ticks of 10 ms since boot; psutil would add the boot time, which the kernel gives in whole seconds.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return 1e3 * (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
    return 1e3 * (time.time() - psutil.Process().create_time())
