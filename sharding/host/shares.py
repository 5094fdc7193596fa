"""How several processes divide a host: cores on CPU, devices on GPU."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cambrian.sharding.errors import UsageError

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_SYSTEM = Path("/sys/devices/system")
_COUNT_DEVICES = "import jax; found = jax.local_devices(); print(found[0].platform, len(found))"


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """What one of several processes has of the host.

    Attributes:
      cores: cores that it may run on; empty for all.
      device_ids: GPUs that it may see, as CUDA_VISIBLE_DEVICES names them; empty for all.
    """

    cores: tuple[int, ...] = ()
    device_ids: tuple[str, ...] = ()

    @contextlib.contextmanager
    def occupied(self) -> Iterator[None]:
        """Confines the calling thread, and the threads and processes that it starts, to the share in this context."""
        visible, allowed = os.environ.get(_VISIBLE), None
        if self.cores and hasattr(os, "sched_setaffinity"):
            allowed = os.sched_getaffinity(0)
            os.sched_setaffinity(0, self.cores)
        if self.device_ids:
            os.environ[_VISIBLE] = ",".join(self.device_ids)
        try:
            yield
        finally:
            if allowed is not None:
                os.sched_setaffinity(0, allowed)
            if visible is not None:
                os.environ[_VISIBLE] = visible
            elif self.device_ids:
                del os.environ[_VISIBLE]


def divide_host(count: int, num_devices: int, platform: str = "auto") -> tuple[str, list[Share], list[str]]:
    """Divides the host into shares of equal size. Starts no backend in this process.

    On CPU each share has its own cores: those of one NUMA node where the numbers allow it, and whole physical cores.

    Args:
      count: number of shares.
      num_devices: number of devices of each.
      platform: cpu, gpu, or auto: gpu if there are enough, else cpu.

    Returns:
      The platform, the shares, and notes on deviations from the request.

    Raises:
      UsageError: if there are fewer cores than shares, or fewer GPUs than they need.
    """
    if platform == "tpu":
        raise UsageError("cards must run on cpu or gpu, got tpu")
    notes = []
    if platform != "cpu":
        found, device_ids = _accelerators()
        needed = count * num_devices
        if found == "gpu" and platform in ("auto", "gpu") and len(device_ids) >= needed:
            starts = range(0, needed, num_devices)
            return "gpu", [Share(device_ids=device_ids[start : start + num_devices]) for start in starts], notes
        if platform != "auto":
            got = f"{len(device_ids)} {found}" if device_ids else "none"
            raise UsageError(f"expected {needed} GPUs for {count} cards of {num_devices} each, got {got}")
        if device_ids:
            notes.append(f"{len(device_ids)} of {needed} devices are {found}: the cards run on virtual CPU devices")
    if not hasattr(os, "sched_setaffinity"):
        return "cpu", [Share()] * count, [*notes, "this system can't pin processes: the cards share all cores"]
    cores = _cores_in_order()
    each, left = divmod(len(cores), count)
    if not each:
        raise UsageError(f"expected at most {len(cores)} cards, one for each core, got {count}")
    if left:
        notes.append(f"{left} of {len(cores)} cores stay idle: each of {count} cards has {each}")
    return "cpu", [Share(tuple(cores[index * each : (index + 1) * each])) for index in range(count)], notes


def _accelerators() -> tuple[str, tuple[str, ...]]:
    """The platform that JAX prefers and the ids of its devices; none for CPU.

    A child process asks JAX, because a backend that starts takes the memory of the devices.
    """
    plugins = importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(group="jax_plugins")
    if not plugins and importlib.util.find_spec("libtpu") is None:
        return "cpu", ()
    child = subprocess.run([sys.executable, "-P", "-c", _COUNT_DEVICES], capture_output=True, text=True)
    try:
        platform, number = child.stdout.splitlines()[-1].split()
        ids = os.environ.get(_VISIBLE, "").split(",") if os.environ.get(_VISIBLE) else range(int(number))
        return platform, () if platform == "cpu" else tuple(map(str, ids))[: int(number)]
    except (IndexError, ValueError):
        reason = next(reversed(child.stderr.strip().splitlines()), f"exit code {child.returncode}")
        raise UsageError(f"expected a platform that JAX can start here, got {reason}") from None


def _cores_in_order() -> list[int]:
    """This process's cores; those of a NUMA node stand together, and so do the threads of a physical core."""
    node_of = {
        core: int(path.parent.name.removeprefix("node"))
        for path in _SYSTEM.glob("node/node[0-9]*/cpulist")
        for core in _numbers(path)
    }

    def place(core: int) -> tuple[int, int, int]:
        siblings = _numbers(_SYSTEM / f"cpu/cpu{core}/topology/thread_siblings_list")
        return node_of.get(core, 0), min(siblings, default=core), core

    return sorted(os.sched_getaffinity(0), key=place)


def _numbers(path: Path) -> list[int]:
    """The numbers in a list of the kernel's, such as `0-3,8`; none if it can't be read."""
    try:
        ranges = [part.split("-") for part in path.read_text().strip().split(",") if part]
    except OSError:
        return []
    return [number for ends in ranges for number in range(int(ends[0]), int(ends[-1]) + 1)]
