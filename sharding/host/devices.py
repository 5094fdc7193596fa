"""The devices of a mesh: the accelerators of this host, or virtual CPU devices."""

import contextlib
import os
import re
from collections.abc import Iterator

import jax
import jax.extend.backend

from cambrian.sharding.errors import UsageError
from cambrian.sharding.host.core_sharing import cores_per_device
from cambrian.sharding.host.cpu import host_cores
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


def max_virtual_devices() -> int:
    """Returns the largest number of virtual CPU devices: 32, or the device count in XLA_FLAGS if that is larger."""
    requested = re.findall(rf"{_DEVICE_COUNT}=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return max(MAX_VIRTUAL_DEVICES, int(requested[-1]) if requested else 0)


def cpu_threads() -> int:
    """Returns the number of threads with which XLA:CPU computes a launch on one device."""
    return _default_threads() if _cpu_threads is None else _cpu_threads


def launches_run_side_by_side() -> bool:
    """Whether each thread computes the launches that it makes on a CPU device, concurrently with other threads."""
    return _side_by_side


def acquire_devices(
    count: int, platform: str = "auto", launches_at_once: int = 1, cores: int | None = None
) -> tuple[list[jax.Device], list[str]]:
    """Returns `count` devices, virtual ones on CPU, and starts JAX's backend.

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
    configured = _configure_virtual_devices(count, launches_at_once, cores, cpu_only=platform == "cpu")
    found = _devices_of(None if platform == "auto" else platform, configured)
    notes = []
    if platform == "auto" and found[0].platform != "cpu" and len(found) < count:
        notes.append(f"{found[0].platform} has {len(found)} of {count} devices: running on {count} virtual CPU devices")
        found = _devices_of("cpu", configured)
    if len(found) >= count:
        return found[:count], notes
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


def _configure_virtual_devices(count: int, launches_at_once: int, cores: int | None, cpu_only: bool) -> bool:
    """Prepares the backend's start; returns whether it will have `count` CPU devices."""
    global _cpu_threads, _side_by_side
    if count > max_virtual_devices() or "virtual_devices" not in host.permitted:
        return False
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # the backend already runs; the caller counts its devices
        return False
    host.record("virtual_devices", f"jax_num_cpu_devices = {count}")
    check_address_space(count)
    if cpu_only and "platform" in host.permitted:
        jax.config.update("jax_platforms", "cpu")
        host.record("platform", "jax_platforms = cpu")
    requested = any(name in os.environ for name in _THREADS)
    if "cpu_threads" in host.permitted:
        _cpu_threads = cores or (_default_threads() if requested else cores_per_device(count, launches_at_once))
    # Asynchronous dispatch computes launches on XLA's thread pool, which may have a single thread.
    _side_by_side = count == 1 and launches_at_once > 1 and "synchronous_dispatch" in host.permitted
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
    if _side_by_side:
        jax.config.update(_ASYNC_DISPATCH, False)
        host.record("synchronous_dispatch", f"{_ASYNC_DISPATCH} = False while the backend started")
    try:
        yield
    finally:
        if _side_by_side:
            jax.config.update(_ASYNC_DISPATCH, asynchronous)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _default_threads() -> int:
    """Returns the size of XLA:CPU's thread pool by XLA's own rule (`DefaultThreadPoolSize`)."""
    return next((int(os.environ[name]) for name in _THREADS if os.environ.get(name, "").isdigit()), host_cores())
