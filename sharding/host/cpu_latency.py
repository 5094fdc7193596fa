"""Keeps CPU cores out of deep sleep while launches run.

With a single image, a layer takes about 0.1 ms on all cores. The core that finishes first sleeps until the next layer,
and a virtual core wakes slowly. While /dev/cpu_dma_latency is open, no core enters a sleep state whose exit latency
exceeds the microseconds written to the file (Linux, Documentation/power/pm_qos_interface.rst). By default only root may
open it.
"""

import contextlib
import os
import struct
import threading
from collections.abc import Iterator

from cambrian.sharding.host.settings import host

_DEVICE = "/dev/cpu_dma_latency"
_MICROSECONDS = 0

_lock = threading.Lock()
_holders = 0
_file: int | None = None


@contextlib.contextmanager
def low_cpu_latency(platform: str) -> Iterator[None]:
    """Keeps CPU cores out of deep sleep inside this context, where permitted; does nothing on other platforms."""
    if platform != "cpu" or "cpu_latency" not in host.permitted:
        yield
        return
    _hold()
    try:
        yield
    finally:
        _release()


def _hold() -> None:
    global _holders, _file
    with _lock:
        _holders += 1
        if _holders == 1:
            with contextlib.suppress(OSError):
                _file = os.open(_DEVICE, os.O_WRONLY | os.O_CLOEXEC)
                os.write(_file, struct.pack("i", _MICROSECONDS))
                host.record("cpu_latency", f"{_DEVICE} is held open while launches run")


def _release() -> None:
    global _holders, _file
    with _lock:
        _holders -= 1
        if _holders == 0 and _file is not None:
            os.close(_file)
            _file = None
