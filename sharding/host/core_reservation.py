"""Divides the host's cores among processes that don't know each other, such as the workers of a Ray cluster."""

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

from cambrian.sharding.host.settings import host

_held: list[int] = []  # descriptors of this process's locks, which end with it


def reserve_cores(count: int) -> bool:
    """Restricts this process, with its running threads, to `count` cores that no other process has reserved.

    A core is reserved by the lock of a file in the system's temporary folder; the lock ends with the process, however
    that ends. Linux only, and only if `host` permits it.

    Returns:
      Whether as many were free; if not, nothing changes.
    """
    if "core_affinity" not in host.permitted or not hasattr(os, "sched_setaffinity"):
        return False
    folder = Path(tempfile.gettempdir()) / f"cambrian-cores-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    reserved: dict[int, int] = {}
    for core in sorted(os.sched_getaffinity(0)):
        if len(reserved) == count:
            break
        descriptor = os.open(folder / str(core), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            reserved[core] = descriptor
        except OSError:  # another process holds it
            os.close(descriptor)
    if len(reserved) < count:
        for descriptor in reserved.values():
            os.close(descriptor)
        return False
    _held.extend(reserved.values())
    for thread in os.listdir("/proc/self/task"):  # the affinity of a process is that of each thread
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), reserved)
    host.record("core_affinity", f"runs on cores {', '.join(map(str, reserved))}")
    return True
