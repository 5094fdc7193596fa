"""Keeps the cores from sleeping while launches run.

The layers of one image take some 0.1 ms each on all cores, and between two of them the core that is done first sleeps;
a virtual one wakes slowly. Linux takes requests for a shorter delay: while /dev/cpu_dma_latency is open, no core sleeps
more deeply than the microseconds written to it allow (Documentation/power/pm_qos_interface.rst). By default root alone
may open it; nobody else's launches change.
"""

import contextlib
import os
import struct
import threading
from collections.abc import Iterator

_DEVICE = "/dev/cpu_dma_latency"
_MICROSECONDS = 0

_lock = threading.Lock()
_holders = 0
_file: int | None = None


@contextlib.contextmanager
def awake(platform: str) -> Iterator[None]:
    """Within it no core sleeps, if `platform` is cpu and the system allows it."""
    if platform != "cpu":
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


def _release() -> None:
    global _holders, _file
    with _lock:
        _holders -= 1
        if _holders == 0 and _file is not None:
            os.close(_file)
            _file = None
