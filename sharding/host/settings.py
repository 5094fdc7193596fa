"""The process-wide settings that Cambrian changes: which it may change, and which it has changed.

Some of what makes launches fast isn't Cambrian's own: environment variables that XLA reads, options of JAX, the C
library's allocator, the kernel's power management. Each such change asks `host` first and is recorded there.
"""

import logging
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from cambrian.sharding.errors import UsageError

SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "virtual_devices": "JAX's option jax_num_cpu_devices is set to the number of devices of the mesh",
        "platform": "JAX's option jax_platforms is set to cpu where CPU devices are asked for: no accelerator starts",
        "collective_timeout": "XLA_FLAGS, while the backend starts: collectives may wait 600 s instead of 40 s",
        "cpu_threads": "PJRT_NPROC, while the backend starts: a launch is computed by its device's share of the cores",
        "time_slices": "XLA's CPU threads keep their core for 100 ms at a time (Linux 6.12)",
        "synchronous_dispatch": "the CPU backend computes each launch on the thread that launches it",
        "cpu_latency": "/dev/cpu_dma_latency is held open while launches run: no core of the machine sleeps deeply",
        "malloc": "glibc's malloc returns freed memory to the system above a limit, or keeps all of it",
    }
)
# These change more than the backend that a mesh needs, so a library user opts in; the command line does.
_OPT_IN = frozenset({"cpu_latency", "malloc"})

_logger = logging.getLogger("cambrian")


class HostSettings:
    """The process-wide settings that Cambrian may change and has changed, by the names in `SETTINGS`.

    By default all may change but `cpu_latency` and `malloc`. Decline before the first mesh is made: the backend starts
    once, with the settings permitted then.
    """

    def __init__(self) -> None:
        self._permitted = set(SETTINGS) - _OPT_IN
        self._changes: dict[str, str] = {}

    @property
    def permitted(self) -> frozenset[str]:
        """Names of the settings that may change."""
        return frozenset(self._permitted)

    @property
    def changes(self) -> dict[str, str]:
        """Setting → what was changed, of each change made so far."""
        return dict(self._changes)

    def permit(self, *names: str) -> None:
        """Lets Cambrian change these settings.

        Raises:
          UsageError: if a name is unknown.
        """
        self._permitted |= _known(names)

    def decline(self, *names: str) -> None:
        """Keeps Cambrian from changing these settings; changes already made stay.

        Raises:
          UsageError: if a name is unknown.
        """
        self._permitted -= _known(names)

    def record(self, name: str, change: str) -> None:
        """Notes that a setting was changed, and logs it at level INFO the first time."""
        if self._changes.get(name) != change:
            self._changes[name] = change
            _logger.info("process-wide setting %s changed: %s", name, change)

    def __repr__(self) -> str:
        return f"HostSettings(permitted={sorted(self._permitted)}, changes={self._changes})"


def _known(names: Iterable[str]) -> set[str]:
    if unknown := sorted(set(names) - set(SETTINGS)):
        raise UsageError(f"expected host settings among {', '.join(SETTINGS)}, got {', '.join(unknown)}")
    return set(names)


host = HostSettings()
