"""The process-wide settings that Cambrian may change and has changed.

Fast launches depend on state that Cambrian doesn't own: environment variables that XLA reads, options of JAX, the
allocator of the C library, the kernel's power management. `host` permits and records each change.
"""

import logging
import os
import sys
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import jax

from cambrian.sharding.errors import UsageError

SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "virtual_devices": "sets JAX's option jax_num_cpu_devices to the number of devices of the mesh",
        "platform": "sets JAX's option jax_platforms to cpu when CPU devices are requested: no accelerator starts",
        "collective_timeout": "sets XLA_FLAGS while the backend starts: collectives may wait 600 s instead of 40 s",
        "cpu_threads": "sets PJRT_NPROC while the backend starts: a launch runs on its device's share of the cores",
        "time_slices": "gives XLA's CPU threads time slices of 100 ms (Linux 6.12)",
        "synchronous_dispatch": "makes the CPU backend compute each launch on the thread that launches it",
        "compilation_cache": "disables JAX's persistent compilation cache while an executable is compiled",
        "cpu_latency": "holds /dev/cpu_dma_latency open while launches run: no core of the machine sleeps deeply",
        "core_affinity": "restricts this process to cores that no other worker of this host has",
        "malloc": "makes glibc's malloc return freed memory above a limit, keep it, use one heap or ask for huge pages",
    }
)
# These affect more than JAX's backend: library users opt in; the command line and its workers do, as far as they need.
_OPT_IN = frozenset({"core_affinity", "cpu_latency", "malloc"})

_logger = logging.getLogger("cambrian")


class HostSettings:
    """The process-wide settings that Cambrian may change and has changed, by the names in `SETTINGS`.

    All are permitted by default except `core_affinity`, `cpu_latency` and `malloc`. Decline settings before the first
    mesh is made: the backend starts once, with the settings permitted at that time.
    """

    def __init__(self) -> None:
        self._permitted = set(SETTINGS) - _OPT_IN
        self._changes: dict[str, str] = {}

    @property
    def permitted(self) -> frozenset[str]:
        """Names of the settings that Cambrian may change."""
        return frozenset(self._permitted)

    @property
    def changes(self) -> dict[str, str]:
        """Name of a setting → description of its change, for all changes so far."""
        return dict(self._changes)

    def permit(self, *names: str) -> None:
        """Permits Cambrian to change these settings.

        Raises:
          UsageError: if a name is unknown.
        """
        self._permitted |= _known(names)

    def decline(self, *names: str) -> None:
        """Forbids Cambrian to change these settings; changes already made stay in force.

        Raises:
          UsageError: if a name is unknown.
        """
        self._permitted -= _known(names)

    def record(self, name: str, change: str) -> None:
        """Records the change of a setting; logs it at level INFO when it is new."""
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


def child_environment() -> dict[str, str]:
    """Returns the environment of a child that imports what this process does, with 64-bit types in JAX if it has them.

    What `jax.config.update` has changed, a child doesn't see otherwise.
    """
    path = os.pathsep.join(entry or os.curdir for entry in sys.path)
    return os.environ | {"PYTHONPATH": path, "JAX_ENABLE_X64": str(jax.config.jax_enable_x64)}
