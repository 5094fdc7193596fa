"""Limits on the freed memory that glibc's malloc keeps."""

import ctypes
import sys
from collections.abc import Mapping

from cambrian.sharding.host.settings import host

# From glibc's malloc.h. Allocations above the mmap threshold get a mapping of their own, unmapped when freed.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_MAX_THRESHOLD = 32 * 2**20  # the largest that glibc accepts
_KEPT_BYTES = 512 * 2**20


def return_freed_memory(num_devices: int) -> None:
    """Makes glibc return freed memory to the system, except for 512 MiB over the threads of all devices.

    By default glibc keeps the temporaries of launches in one arena per XLA thread. ResNet101 in bfloat16 on mesh 4x8
    takes 1.6 GiB by default and 1.3 GiB with this limit, at the same speed. Where temporaries are mapped anew at each
    launch, mesh 1x1 loses a quarter of its speed. Does nothing on other C libraries.
    """
    kept = _KEPT_BYTES // num_devices
    # An allocation above the mmap threshold is never kept. Both thresholds are set because setting one of them fixes
    # the other at 128 KiB.
    mapped = {_M_MMAP_THRESHOLD: kept} if kept <= _MAX_THRESHOLD else {_M_MMAP_MAX: 0}
    _set_malloc({**mapped, _M_TRIM_THRESHOLD: kept}, f"keeps {kept} bytes of freed memory in each arena")


def use_one_heap() -> None:
    """Makes glibc allocate from one heap. Call it before JAX starts its threads.

    By default each thread maps 64 MiB of address space for a heap of its own: on 2 cores 0.9 GiB, where a run of a
    small network otherwise takes 0.5. Does nothing on other C libraries.
    """
    _set_malloc({_M_ARENA_MAX: 1}, "allocates from one heap, as the address space is limited")


def keep_freed_memory() -> None:
    """Makes glibc keep all freed memory in one heap. Call it before JAX starts its threads.

    Meant for timing single layers: each reuses the memory of the layers before it, as in a whole launch, so that page
    faults don't count. Does nothing on other C libraries.
    """
    _set_malloc({_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}, "keeps all freed memory in one heap")


def _set_malloc(options: Mapping[int, int], change: str) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or "malloc" not in host.permitted:
        return
    for option, value in options.items():
        mallopt(option, value)
    host.record("malloc", change)
