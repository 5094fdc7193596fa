"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable
from pathlib import Path


def settle(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Waits until `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def num_lines(path: Path) -> int:
    """The number of lines of a file; 0 while it isn't there."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
