"""Where a mesh runs: the accelerators of this host, or virtual CPU devices."""

import contextlib
import os
import re
from collections.abc import Iterator

import jax

from sharding.cpu import host_cores
from sharding.errors import UsageError
from sharding.host_threads import cores_per_device
from sharding.time_slices import long_time_slices

PLATFORMS = ("auto", "cpu", "gpu", "tpu")
MAX_VIRTUAL_DEVICES = 32
# Collectives between virtual devices abort the process after 40 s by default, too short where 32 share two cores.
_COLLECTIVE_TIMEOUT = "--xla_cpu_collective_call_terminate_timeout_seconds"
_DEVICE_COUNT = "--xla_force_host_platform_device_count"
# XLA:CPU computes each launch with as many threads as the first of these says, else with one for each core.
_THREADS = ("PJRT_NPROC", "NPROC")

_cpu_threads: int | None = None  # with which `acquire_devices` started the backend; None if it didn't
_side_by_side = False


def max_virtual_devices() -> int:
    """The most virtual CPU devices a mesh may ask for: 32, or more where XLA_FLAGS says so."""
    asked = re.findall(rf"{_DEVICE_COUNT}=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return max(MAX_VIRTUAL_DEVICES, int(asked[-1]) if asked else 0)


def cpu_threads() -> int:
    """The threads with which XLA:CPU computes a launch on one device."""
    return _threads_asked() if _cpu_threads is None else _cpu_threads


def launches_run_side_by_side() -> bool:
    """Whether a launch on a CPU device is computed by the thread that launches it, beside those of others."""
    return _side_by_side


def acquire_devices(
    count: int, platform: str = "auto", launches_at_once: int = 1, cores: int | None = None
) -> tuple[list[jax.Device], list[str]]:
    """Finds `count` devices, and makes virtual ones on CPU; starts JAX's backend.

    Args:
      count: number of devices.
      platform: cpu, gpu, tpu, or auto: the accelerator where it has enough devices, else virtual CPU devices.
      launches_at_once: that shall compute side by side on a single virtual device, each by the host thread that
        launches it.
      cores: that compute each launch on a virtual device together; None for what PJRT_NPROC or NPROC says, else an
        equal share of the host's.

    Returns:
      The devices, and one note for each way that differs from what was asked.

    Raises:
      UsageError: if the platform is unknown or has fewer devices, more virtual devices are asked for than
        `max_virtual_devices()`, or the backend already runs with fewer.
    """
    if platform not in PLATFORMS:
        raise UsageError(f"platform must be one of {', '.join(PLATFORMS)}, got {platform!r}")
    configured = _configure_virtual_devices(count, launches_at_once, cores, cpu_only=platform == "cpu")
    with _cpu_threads_set_up():
        found = _devices_of(None if platform == "auto" else platform)
    notes = []
    if platform == "auto" and found[0].platform != "cpu" and len(found) < count:
        notes.append(
            f"{found[0].platform} has {len(found)} of {count} devices needed: running on {count} virtual CPU devices"
        )
        with _cpu_threads_set_up():
            found = _devices_of("cpu")
    if len(found) >= count:
        return found[:count], notes
    if found[0].platform != "cpu":
        raise UsageError(f"{count} {platform} devices are needed, found {len(found)}")
    if count > max_virtual_devices():
        raise UsageError(
            f"at most {max_virtual_devices()} virtual CPU devices are made unless XLA_FLAGS={_DEVICE_COUNT}=N "
            f"asks for more, got {count}"
        )
    assert not configured
    raise UsageError(
        f"{count} CPU devices are needed, but JAX's backend already runs with {len(found)}: call "
        f"sharding.acquire_devices({count}), or jax.config.update('jax_num_cpu_devices', {count}), "
        "before the first JAX operation"
    )


def _configure_virtual_devices(count: int, launches_at_once: int, cores: int | None, cpu_only: bool) -> bool:
    global _cpu_threads, _side_by_side
    if count > max_virtual_devices():
        return False
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # the backend already runs; whether it has enough devices is seen by counting them
        return False
    flags = os.environ.get("XLA_FLAGS", "")
    if _COLLECTIVE_TIMEOUT not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_COLLECTIVE_TIMEOUT}=600".strip()
    if cpu_only:
        jax.config.update("jax_platforms", "cpu")
    asked = any(name in os.environ for name in _THREADS)
    _cpu_threads = cores or (_threads_asked() if asked else cores_per_device(count, launches_at_once))
    _side_by_side = count == 1 and launches_at_once > 1
    if _side_by_side:  # else XLA computes in threads of its own pool, which may be a single one
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    return True


@contextlib.contextmanager
def _cpu_threads_set_up() -> Iterator[None]:
    """Within it a backend starts with the threads chosen; threads and processes started later aren't touched."""
    if _cpu_threads is None:
        yield
        return
    name, before = _THREADS[0], os.environ.get(_THREADS[0])
    os.environ[name] = str(_cpu_threads)
    try:
        with long_time_slices():
            yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _threads_asked() -> int:
    """The size of XLA:CPU's thread pool, by the rule that XLA has for it (`DefaultThreadPoolSize`)."""
    return next((int(os.environ[name]) for name in _THREADS if os.environ.get(name, "").isdigit()), host_cores())


def _devices_of(platform: str | None) -> list[jax.Device]:
    try:
        return jax.local_devices(backend=platform)
    except RuntimeError as error:
        raise UsageError(f"platform {platform} is needed, JAX found none: {error}") from None
