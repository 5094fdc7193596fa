"""Where a mesh runs: the accelerators of this host, or virtual CPU devices."""

import os
import platform as host
import re

import jax

from sharding.errors import UsageError

PLATFORMS = ("auto", "cpu", "gpu", "tpu")
MAX_VIRTUAL_DEVICES = 32
# Collectives between virtual devices abort the process after 40 s by default, too short where 32 share two cores.
_COLLECTIVE_TIMEOUT = "--xla_cpu_collective_call_terminate_timeout_seconds"
_DEVICE_COUNT = "--xla_force_host_platform_device_count"


def max_virtual_devices() -> int:
    """The most virtual CPU devices a mesh may ask for: 32, or more where XLA_FLAGS says so."""
    asked = re.findall(rf"{_DEVICE_COUNT}=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return max(MAX_VIRTUAL_DEVICES, int(asked[-1]) if asked else 0)


def acquire_devices(count: int, platform: str = "auto") -> tuple[list[jax.Device], list[str]]:
    """Finds `count` devices, and makes virtual ones on CPU; starts JAX's backend.

    Args:
      count: number of devices.
      platform: cpu, gpu, tpu, or auto: the accelerator where it has enough devices, else virtual CPU devices.

    Returns:
      The devices, and one note for each way that differs from what was asked.

    Raises:
      UsageError: if the platform is unknown or has fewer devices, more virtual devices are asked for than
        `max_virtual_devices()`, or the backend already runs with fewer.
    """
    if platform not in PLATFORMS:
        raise UsageError(f"platform must be one of {', '.join(PLATFORMS)}, got {platform!r}")
    configured = _configure_virtual_devices(count, cpu_only=platform == "cpu")
    found = _devices_of(None if platform == "auto" else platform)
    notes = []
    if platform == "auto" and found[0].platform != "cpu" and len(found) < count:
        notes.append(
            f"{found[0].platform} has {len(found)} of {count} devices needed: running on {count} virtual CPU devices"
        )
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


def _configure_virtual_devices(count: int, cpu_only: bool) -> bool:
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
    return True


def _devices_of(platform: str | None) -> list[jax.Device]:
    try:
        return jax.local_devices(backend=platform)
    except RuntimeError as error:
        raise UsageError(f"platform {platform} is needed, JAX found none: {error}") from None


def computes_bfloat16(platform: str) -> bool:
    """Whether the platform multiplies bfloat16 natively: GPUs and TPUs, and CPUs with AVX512-BF16 or AMX."""
    if platform != "cpu":
        return True
    return bool({"avx512_bf16", "amx_bf16"} & cpu_features())


def cpu_model() -> str:
    """The CPU's name as the kernel lists it, else as Python does."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return host.processor()


def cpu_features() -> frozenset[str]:
    """The CPU's feature flags as the kernel lists them; empty where it lists none."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()
