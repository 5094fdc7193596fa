"""How long Linux lets a thread compute before another one gets the core."""

import contextlib
import ctypes
import platform
import struct
import sys
from collections.abc import Iterator

# Numbers of sched_setattr and sched_getattr, for which glibc has functions since 2.41 only.
_SYSTEM_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
_ATTRIBUTES = struct.Struct("=IIQiIQQQII")  # struct sched_attr of sched_setattr(2)
_POLICY, RUNTIME = 1, 5
_SHARING_POLICIES = (0, 3)  # SCHED_OTHER and SCHED_BATCH, whose runtime is the length of a slice in nanoseconds
_LONGEST_NS = 100_000_000


@contextlib.contextmanager
def long_time_slices() -> Iterator[None]:
    """Threads that the present one starts within it compute for 100 ms, not a few, while others wait for their core.

    The threads of many virtual devices take turns on few cores; each time one comes back, its caches hold another's
    activations. Needs Linux 6.12, the first with slices of a thread's own; elsewhere nothing changes.
    """
    attributes = get_attributes()
    if attributes is None or attributes[_POLICY] not in _SHARING_POLICIES:
        yield
        return
    _set_attributes((*attributes[:RUNTIME], _LONGEST_NS, *attributes[RUNTIME + 1 :]))
    try:
        yield
    finally:
        _set_attributes(attributes)


def get_attributes(thread_id: int = 0) -> tuple[int, ...] | None:
    """The scheduling attributes of a thread, 0 for the present one, in the kernel's order; None where it has none."""
    if sys.platform != "linux" or platform.machine() not in _SYSTEM_CALLS:
        return None
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    _, number = _SYSTEM_CALLS[platform.machine()]
    failed = ctypes.CDLL(None).syscall(number, thread_id, buffer, _ATTRIBUTES.size, 0)
    return None if failed else _ATTRIBUTES.unpack(buffer.raw)


def _set_attributes(attributes: tuple[int, ...]) -> None:
    number, _ = _SYSTEM_CALLS[platform.machine()]
    ctypes.CDLL(None).syscall(number, 0, _ATTRIBUTES.pack(*attributes), 0)
