"""Time slices: how long a thread computes before Linux gives its core to another one."""

import contextlib
import ctypes
import platform
import struct
import sys
from collections.abc import Iterator

from cambrian.sharding.host.settings import host

# Numbers of the system calls sched_setattr and sched_getattr; glibc wraps them since version 2.41.
_SYSTEM_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
_ATTRIBUTES = struct.Struct("=IIQiIQQQII")  # struct sched_attr of sched_setattr(2)
_POLICY, RUNTIME = 1, 5
_SHARING_POLICIES = (0, 3)  # SCHED_OTHER and SCHED_BATCH, whose runtime is the time slice in nanoseconds
_LONGEST_NS = 100_000_000


@contextlib.contextmanager
def long_time_slices() -> Iterator[None]:
    """Gives 100 ms time slices to threads that the calling thread starts inside this context.

    The threads of many virtual devices take turns on few cores, and each turn starts with caches that hold another
    device's activations. Does nothing before Linux 6.12, which introduced time slices per thread, or where the host
    settings decline it.
    """
    attributes = get_attributes()
    permitted = "time_slices" in host.permitted
    if not permitted or attributes is None or attributes[_POLICY] not in _SHARING_POLICIES:
        yield
        return
    _set_attributes((*attributes[:RUNTIME], _LONGEST_NS, *attributes[RUNTIME + 1 :]))
    host.record("time_slices", f"threads of the CPU backend compute for {_LONGEST_NS // 10**6} ms at a time")
    try:
        yield
    finally:
        _set_attributes(attributes)


def get_attributes(thread_id: int = 0) -> tuple[int, ...] | None:
    """Returns the scheduling attributes of a thread (0: the calling one) in the kernel's order; None if unavailable."""
    if sys.platform != "linux" or platform.machine() not in _SYSTEM_CALLS:
        return None
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    _, number = _SYSTEM_CALLS[platform.machine()]
    failed = ctypes.CDLL(None).syscall(number, thread_id, buffer, _ATTRIBUTES.size, 0)
    return None if failed else _ATTRIBUTES.unpack(buffer.raw)


def _set_attributes(attributes: tuple[int, ...]) -> None:
    number, _ = _SYSTEM_CALLS[platform.machine()]
    ctypes.CDLL(None).syscall(number, 0, _ATTRIBUTES.pack(*attributes), 0)
