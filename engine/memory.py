"""Memory: what a run will take, on each device and on the host, and how much there is."""

import math
import resource
import sys

import jax
import numpy as np
import psutil

from engine.configuration import parse_bytes
from engine.errors import OutOfMemory
from engine.executable import Executable
from engine.launch import MAX_LAUNCHES_IN_FLIGHT


def device_memory_bytes(devices: list[jax.Device]) -> int:
    """Memory of each device: what it reports, or for virtual CPU devices an equal share of the host's."""
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return psutil.virtual_memory().total // len(devices)


def memory_limit_bytes(limit: str, devices: list[jax.Device]) -> int:
    """What a device may hold: `limit`, such as 512MiB, or where it is empty the device's memory."""
    return parse_bytes(limit) if limit else device_memory_bytes(devices)


def predicted_memory_bytes_per_device(executable: Executable, threads: int) -> int:
    """Bytes a device needs: the parameters, and inputs, outputs and temporaries of every launch in flight."""
    analysis = executable.analysis
    parameters = analysis.argument_bytes - _input_bytes_per_device(executable)
    return parameters + _launches_in_flight(threads) * bytes_per_launch(executable)


def predicted_host_memory_bytes(executable: Executable, threads: int, base_bytes: int) -> int:
    """Bytes the process needs: its own, the distinct parameters once, and on virtual CPU devices their launches.

    Args:
      base_bytes: resident memory before the executable was made.
    """
    if executable.mesh.devices.flat[0].platform != "cpu":
        return base_bytes
    distinct = sum(param.nbytes for param in executable.params)
    launches = _launches_in_flight(threads) * executable.mesh.size * bytes_per_launch(executable)
    return base_bytes + distinct + launches


def check_device_memory(executable: Executable, threads: int, limit: str) -> int:
    """Predicts the memory of a device and compares it with its limit, `limit` or what the device has.

    Returns:
      The prediction in bytes.

    Raises:
      OutOfMemory: if the prediction is above the limit.
    """
    predicted = predicted_memory_bytes_per_device(executable, threads)
    allowed = memory_limit_bytes(limit, list(executable.mesh.devices.flat))
    if predicted > allowed:
        raise OutOfMemory(
            f"a device must hold {predicted / 2**20:.0f} MiB (parameters and {_launches_in_flight(threads)} launches "
            f"in flight), got a limit of {allowed / 2**20:.0f} MiB"
        )
    return predicted


def resident_bytes() -> int:
    """Resident memory of this process."""
    return psutil.Process().memory_info().rss


def peak_host_memory_bytes() -> int:
    """The most resident memory this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _launches_in_flight(threads: int) -> int:
    return min(threads, MAX_LAUNCHES_IN_FLIGHT)


def _input_bytes_per_device(executable: Executable) -> int:
    spec = executable.input_spec
    shard = spec.sharding(executable.mesh).shard_shape(spec.shape)
    return math.prod(shard) * np.dtype(spec.dtype).itemsize


def bytes_per_launch(executable: Executable) -> int:
    """Bytes of inputs, outputs and temporaries that one launch takes on each device."""
    analysis = executable.analysis
    return _input_bytes_per_device(executable) + analysis.output_bytes + analysis.temporary_bytes
