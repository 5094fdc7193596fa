"""The devices of a mesh: the accelerators of this host, or virtual CPU devices."""

import contextlib
import os
import re
from collections.abc import Iterator

import jax
import jax.extend.backend

from cambrian.sharding.errors import UsageError
from cambrian.sharding.host.core_sharing import cores_per_device
from cambrian.sharding.host.cpu import permitted_cores
from cambrian.sharding.host.process_limits import check_address_space
from cambrian.sharding.host.settings import host
from cambrian.sharding.host.time_slices import long_time_slices

PLATFORMS = ("auto", "cpu", "gpu", "tpu")
MAX_VIRTUAL_DEVICES = 32
# Collectives between virtual devices abort the process after 40 s by default, too soon when 32 devices share two cores.
_COLLECTIVE_TIMEOUT = "--xla_cpu_collective_call_terminate_timeout_seconds"
_DEVICE_COUNT = "--xla_force_host_platform_device_count"
# XLA:CPU takes the size of its thread pool from the first of these that is set, else from the number of cores.
_THREADS = ("PJRT_NPROC", "NPROC")
_ASYNC_DISPATCH = "jax_cpu_enable_async_dispatch"

_cpu_threads: int | None = None  # size of XLA:CPU's thread pool, if `acquire_devices` set it
_side_by_side = False
_synchronous = False
_processes = 1  # that share a mesh
_NEVER_S = 10**6


def max_virtual_devices() -> int:
    """Returns the largest number of virtual CPU devices: 32, or the device count in XLA_FLAGS if that is larger."""
    requested = re.findall(rf"{_DEVICE_COUNT}=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return max(MAX_VIRTUAL_DEVICES, int(requested[-1]) if requested else 0)


def cpu_threads() -> int:
    """Returns the number of threads with which XLA:CPU computes a launch on one device."""
    return default_threads() if _cpu_threads is None else _cpu_threads


def launches_run_side_by_side() -> bool:
    """Whether each thread computes the launches that it makes on a CPU device, concurrently with other threads."""
    return _side_by_side


def join_mesh(processes: int, process_id: int, coordinator: str, timeout_s: float) -> None:
    """Makes this process one of several whose devices form a mesh, by JAX's distributed runtime.

    The backend must not have started. The runtime is needed until all processes have made a first launch, in which
    collectives connect. Its own answer to the end of process 0 is to abort the others: `jax.distributed.shutdown()`
    leaves it, in all processes at once, and the mesh stays.

    Args:
      coordinator: HOST:PORT of JAX's coordination service, which process 0 starts.
    """
    global _processes
    _processes = processes
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM
    jax.distributed.initialize(
        coordinator,
        processes,
        process_id,
        cluster_detection_method="deactivate",
        initialization_timeout=round(timeout_s),
        coordinator_bind_address=coordinator,
        heartbeat_timeout_seconds=_NEVER_S,
    )


def shares_mesh() -> bool:
    """Whether this process has joined others by `join_mesh`."""
    return _processes > 1


def acquire_devices(
    count: int, platform: str = "auto", launches_at_once: int = 1, cores: int | None = None
) -> tuple[list[jax.Device], list[str]]:
    """Returns `count` devices, virtual ones on CPU, and starts JAX's backend.

    After `join_mesh` these are equal numbers of devices of all processes, in the order of the processes, and each of
    them must call this at the same time.

    Changes process-wide settings unless `host` declines them, see `cambrian.sharding.host.settings`.

    Args:
      count: number of devices.
      platform: cpu, gpu, tpu, or auto: the accelerator if it has enough devices, else virtual CPU devices.
      launches_at_once: number of launches that compute concurrently on a single virtual device, each on the host thread
        that launches it.
      cores: number of cores that compute a launch on a virtual device; None for the value of PJRT_NPROC or NPROC, or
        else an equal share of the host's cores.

    Returns:
      The devices, and notes on deviations from the request.

    Raises:
      UsageError: if the platform is unknown or has fewer devices, `count` exceeds `max_virtual_devices()`, or the
        backend already runs with fewer devices.
      OutOfMemory: if the address space of this process is too small for the devices, see `check_address_space`.
    """
    if platform not in PLATFORMS:
        raise UsageError(f"expected a platform among {', '.join(PLATFORMS)}, got {platform!r}")
    count //= _processes
    if _processes > 1:
        launches_at_once = 1
    configured = _configure_virtual_devices(count, launches_at_once, cores, cpu_only=platform == "cpu")
    found = _devices_of(None if platform == "auto" else platform, configured)
    notes = []
    if platform == "auto" and found[0].platform != "cpu" and len(found) < count:
        notes.append(f"{found[0].platform} has {len(found)} of {count} devices: running on {count} virtual CPU devices")
        found = _devices_of("cpu", configured)
    if len(found) >= count:
        return _of_all_processes(count, found[:count]), notes
    if found[0].platform != "cpu":
        raise UsageError(f"expected at least {count} {platform} devices, got {len(found)}")
    if count > max_virtual_devices():
        raise UsageError(
            f"expected at most {max_virtual_devices()} virtual CPU devices, unless XLA_FLAGS={_DEVICE_COUNT}=N "
            f"asks for more, got {count}"
        )
    assert not configured
    raise UsageError(
        f"expected at least {count} CPU devices, got {len(found)} from JAX's backend, which already runs or may not "
        f"make virtual devices: compile the model, or call jax.config.update('jax_num_cpu_devices', {count}), before "
        "the first JAX operation"
    )


def _of_all_processes(count: int, found: list[jax.Device]) -> list[jax.Device]:
    """The first `count` devices of each process; `found` are those of this one."""
    if _processes == 1:
        return found
    devices = jax.devices(found[0].platform)
    by_process = [[device for device in devices if device.process_index == index] for index in range(_processes)]
    for index, its_devices in enumerate(by_process):
        if len(its_devices) < count:
            raise UsageError(
                f"expected {count} {found[0].platform} devices in each of {_processes} processes, got "
                f"{len(its_devices)} in process {index}"
            )
    return [device for its_devices in by_process for device in its_devices[:count]]


def _configure_virtual_devices(count: int, launches_at_once: int, cores: int | None, cpu_only: bool) -> bool:
    """Prepares the backend's start; returns whether it will have `count` CPU devices."""
    global _cpu_threads, _side_by_side, _synchronous
    if count > max_virtual_devices() or "virtual_devices" not in host.permitted:
        return False
    made = max(count, jax.config.values["jax_num_cpu_devices"])  # the user may have asked for more
    try:
        # Only an update that changes something raises where the backend already runs; the caller counts its devices.
        jax.config.update("jax_num_cpu_devices", made + 1)
        jax.config.update("jax_num_cpu_devices", made)
    except RuntimeError:
        return False
    host.record("virtual_devices", f"jax_num_cpu_devices = {made}")
    check_address_space(count)
    if cpu_only and "platform" in host.permitted:
        jax.config.update("jax_platforms", "cpu")
        host.record("platform", "jax_platforms = cpu")
    requested = any(name in os.environ for name in _THREADS)
    if "cpu_threads" in host.permitted:
        _cpu_threads = cores or (default_threads() if requested else cores_per_device(count, launches_at_once))
    # Asynchronous dispatch computes launches on XLA's thread pool, which may have a single thread.
    _side_by_side = count == 1 and launches_at_once > 1 and "synchronous_dispatch" in host.permitted
    # With one device of several processes, XLA would start a launch before the one before it has ended, and their
    # collectives would mix.
    _synchronous = _side_by_side or (count == 1 and _processes > 1)
    return True


def _devices_of(platform: str | None, configured: bool) -> list[jax.Device]:
    """Returns the devices of a platform; starts the backend with our settings if `configured`."""
    with contextlib.ExitStack() as settings:
        if configured:
            settings.enter_context(_starting_environment())
            settings.enter_context(long_time_slices())
        try:
            return jax.local_devices(backend=platform)
        except Exception as error:  # plugins raise errors of any type
            requested = platform or f"JAX_PLATFORMS={jax.config.values['jax_platforms']}"
            reason = next(iter(str(error).splitlines()), type(error).__name__).partition(" (set JAX_PLATFORMS")[0]
            raise UsageError(
                f"expected a platform that JAX can start here, one of {_platforms_here()}, got {requested}: {reason}"
            ) from None


def _platforms_here() -> str:
    """Returns the names of the platforms that JAX starts by default, without leaving a backend running."""
    try:
        found = jax.extend.backend.backends()
    except Exception:  # no backend runs, because the requested one doesn't start
        requested = jax.config.values["jax_platforms"]
        jax.config.update("jax_platforms", "")
        try:
            found = jax.extend.backend.backends()
        except Exception:
            return "none"
        finally:
            jax.config.update("jax_platforms", requested)
        names = {client.platform for client in found.values()}
        jax.extend.backend.clear_backends()
    else:
        names = {client.platform for client in found.values()}
    return ", ".join(sorted(names))


@contextlib.contextmanager
def _starting_environment() -> Iterator[None]:
    """Sets what the backend reads once, at its start, and restores it so that child processes don't inherit it."""
    variables, flags, asynchronous = {}, os.environ.get("XLA_FLAGS", ""), jax.config.values[_ASYNC_DISPATCH]
    if _cpu_threads is not None:
        variables[_THREADS[0]] = str(_cpu_threads)
        host.record("cpu_threads", f"PJRT_NPROC = {_cpu_threads} while the backend started")
    if _COLLECTIVE_TIMEOUT not in flags and "collective_timeout" in host.permitted:
        variables["XLA_FLAGS"] = f"{flags} {_COLLECTIVE_TIMEOUT}=600".strip()
        host.record("collective_timeout", f"{_COLLECTIVE_TIMEOUT}=600 in XLA_FLAGS while the backend started")
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    if _synchronous:
        jax.config.update(_ASYNC_DISPATCH, False)
        host.record("synchronous_dispatch", f"{_ASYNC_DISPATCH} = False while the backend started")
    try:
        yield
    finally:
        if _synchronous:
            jax.config.update(_ASYNC_DISPATCH, asynchronous)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def default_threads() -> int:
    """Returns the size of XLA:CPU's thread pool by XLA's own rule (`DefaultThreadPoolSize`)."""
    return next((int(os.environ[name]) for name in _THREADS if os.environ.get(name, "").isdigit()), permitted_cores())
