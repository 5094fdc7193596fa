"""Huge pages for the memory that glibc's malloc allocates."""

import os
import platform
import sys
from pathlib import Path

from cambrian.sharding.host.settings import host

_VARIABLE, _VALUE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
_POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Restarts the command of this process so that malloc asks for huge pages; call it before any work is done.

    XLA:CPU maps the activations of each training step anew: 3 GiB for ResNet101 on 64 images in bfloat16, whose 800,000
    page faults take a quarter of the step. glibc (2.35 or later) reads GLIBC_TUNABLES only when a process starts. Does
    nothing if the user has set the variable, or if the kernel doesn't give huge pages to those who ask.
    """
    if "malloc" not in host.permitted or not _can_ask():
        return
    if _VARIABLE not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {_VARIABLE: _VALUE})
    if os.environ[_VARIABLE] == _VALUE:
        host.record("malloc", f"asks for huge pages, as {_VARIABLE}={_VALUE} makes it")


def _can_ask() -> bool:
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split("."))) < (2, 35):
        return False
    try:
        return "[madvise]" in _POLICY.read_text()
    except OSError:
        return False
