"""The limit of this process's address space (RLIMIT_AS, `ulimit -v`), and where the system ran out of memory.

XLA aborts the process where it can't map memory or start a thread, so what exceeds a limit is refused beforehand.
"""

import resource

import psutil

from cambrian.sharding.errors import OutOfMemory
from cambrian.sharding.host.cpu import permitted_cores
from cambrian.sharding.host.malloc import use_one_heap

# Measured with jax 0.10 on 2 cores: what ResNets of 8 channels map to be built or trained, besides stacks of threads.
_WORK_BYTES = 640 * 2**20
_DEFAULT_STACK_BYTES = 8 * 2**20


def check_address_space(num_devices: int) -> None:
    """Checks that the address space is large enough to start JAX's backend and to build or train a small network.

    Where it is limited, malloc then uses one heap. Call this before the backend starts.

    Args:
      num_devices: number of virtual CPU devices.

    Raises:
      OutOfMemory: if the limit leaves too little.
    """
    left = address_space_left()
    if left is None:
        return
    use_one_heap()
    # XLA starts two threads for each device, and about four pools with a thread for each core.
    needed = _WORK_BYTES + _stack_bytes() * (2 * num_devices + 4 * permitted_cores())
    if left < needed:
        raise OutOfMemory(
            f"expected at least {needed / 2**20:.0f} MiB of address space for {num_devices} devices, got "
            f"{max(left, 0) / 2**20:.0f} MiB left by its limit (ulimit -v)"
        )


def address_space_left() -> int | None:
    """Returns the bytes that this process may still map; None if they aren't limited."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit - psutil.Process().memory_info().vms


def oom_kills() -> int | None:
    """Returns how many processes the system has killed for want of memory; None where it keeps no count."""
    try:
        with open("/proc/vmstat") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), None)
    except OSError:
        return None


def _stack_bytes() -> int:
    limit = resource.getrlimit(resource.RLIMIT_STACK)[0]
    return _DEFAULT_STACK_BYTES if limit == resource.RLIM_INFINITY else limit
