"""Memory of a run, on each device and on the host: predicted, measured and available."""

import contextlib
import math
import resource
import sys

import jax
import numpy as np
import psutil

from cambrian.engine.runtime.executable import Executable
from cambrian.engine.runtime.launch import MAX_LAUNCHES_IN_FLIGHT, launches_computing_at_once
from cambrian.sharding import OutOfMemory
from cambrian.sharding.host.control_groups import control_group_bytes
from cambrian.sharding.host.process_limits import address_space_left


def device_memory_bytes(devices: list[jax.Device]) -> int:
    """Returns the memory of each device as it reports it.

    For virtual CPU devices, this is an equal share of the host's, but at most the limit of the process's control group.
    That isn't divided: devices share the parameters that each of them holds whole.
    """
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    group = control_group_bytes()
    return min(psutil.virtual_memory().total // len(devices), math.inf if group is None else group)


def predicted_memory_bytes_per_device(executable: Executable, threads: int) -> int:
    """Predicts the bytes on a device: parameters, temporaries, and inputs and outputs of every launch in flight.

    A device holds the temporaries of the launches that it computes at once. A mesh computes one launch after the other:
    with 8 in flight, the process was measured to hold no more temporaries than with 2.
    """
    parameters = executable.analysis.argument_bytes - _input_bytes_per_device(executable)
    return parameters + _bytes_in_flight_per_device(executable, threads)


def loaded_host_memory_bytes(executable: Executable) -> int:
    """Returns the resident bytes with the executable loaded and nothing in flight."""
    if executable.probe is not None:  # nothing has been launched yet
        return resident_bytes()
    # XLA frees the first launch's temporaries some time after its outputs are ready. At the peak all were resident.
    temporaries = _num_devices_here(executable) * executable.analysis.temporary_bytes
    return min(resident_bytes(), max(0, peak_host_memory_bytes() - temporaries))


def predicted_host_memory_bytes(executable: Executable, threads: int, loaded_bytes: int) -> int:
    """Predicts the peak of the process's memory: `loaded_bytes`, and on virtual CPU devices the launches in flight.

    Args:
      executable: loaded executable.
      threads: number of host threads that launch it.
      loaded_bytes: resident memory with the executable loaded, including the parameters, which virtual devices share.
    """
    if executable.platform != "cpu":
        return loaded_bytes
    return loaded_bytes + _num_devices_here(executable) * _bytes_in_flight_per_device(executable, threads)


def check_device_memory(executable: Executable, threads: int, limit_bytes: int | None, cards: int = 1) -> int:
    """Predicts the memory of a device and compares it with the limit; virtual devices must also fit the process's.

    Args:
      executable: loaded executable.
      threads: number of host threads that launch it.
      limit_bytes: largest memory of a device; None for all that it has.
      cards: number of processes like this one, which share the memory of its control group.

    Returns:
      The prediction in bytes.

    Raises:
      OutOfMemory: if the prediction is above the limit, or the launches in flight on virtual devices exceed what the
        address space and the control group of this process leave.
    """
    predicted = predicted_memory_bytes_per_device(executable, threads)
    allowed = device_memory_bytes(executable.mesh.local_devices) if limit_bytes is None else limit_bytes
    if predicted > allowed:
        raise OutOfMemory(
            f"a device must hold {predicted / 2**20:.0f} MiB (parameters and {_launches_in_flight(threads)} launches "
            f"in flight), got a limit of {allowed / 2**20:.0f} MiB"
        )
    if executable.platform == "cpu":
        in_flight = _num_devices_here(executable) * _bytes_in_flight_per_device(executable, threads)
        _check_process_memory(in_flight, threads, cards)
    return predicted


def _check_process_memory(in_flight: int, threads: int, cards: int) -> None:
    group, space = control_group_bytes(), address_space_left()
    left = math.inf if space is None else space
    if group is not None:
        of_the_others = (cards - 1) * (_private_bytes() + in_flight)
        left = min(left, group - of_the_others - resident_bytes())
    if in_flight > left:
        by_others = f", {cards - 1} other cards" * (cards > 1)
        raise OutOfMemory(
            f"expected at least {in_flight / 2**20:.0f} MiB for {_launches_in_flight(threads)} launches in flight, got "
            f"{max(left, 0) / 2**20:.0f} MiB left by the limits of this process (ulimit -v, control group{by_others})"
        )


def resident_bytes() -> int:
    """Returns the resident memory of this process."""
    return psutil.Process().memory_info().rss


def _private_bytes() -> int:
    """The resident memory without pages of files, such as libraries, which processes share. Linux only."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


def peak_host_memory_bytes() -> int:
    """Returns the peak of this process's resident memory."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Where there is no such file. A child may have inherited this from a larger parent.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _bytes_in_flight_per_device(executable: Executable, threads: int) -> int:
    inputs_and_outputs = _input_bytes_per_device(executable) + executable.analysis.output_bytes
    at_once = launches_computing_at_once(executable.mesh, threads)
    return at_once * executable.analysis.temporary_bytes + _launches_in_flight(threads) * inputs_and_outputs


def _num_devices_here(executable: Executable) -> int:
    return len(executable.mesh.local_devices)


def _launches_in_flight(threads: int) -> int:
    return min(threads, MAX_LAUNCHES_IN_FLIGHT)


def _input_bytes_per_device(executable: Executable) -> int:
    specs = jax.tree.leaves(executable.input_spec)
    shards = [spec.sharding(executable.mesh).shard_shape(spec.shape) for spec in specs]
    return sum(math.prod(shard) * np.dtype(spec.dtype).itemsize for spec, shard in zip(specs, shards, strict=True))
