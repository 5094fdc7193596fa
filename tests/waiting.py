"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable


def settle(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Waits until `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
