"""Ours and stock JAX on a network, each in a process of its own."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import cambrian
from benchmarks.networks.make_network import make_network
from cambrian.sharding import time_launches
from cambrian.sharding.host import acquire_devices, low_cpu_latency

_THREADS = (1, 2)  # host threads that launch
_launches: list[tuple[Callable[[], jax.Array], int]] = []  # launch and batch size, of this process


def prepare_ours(name: str, batch: int, precision: str, launches_at_once: int = 1) -> dict[str, Any]:
    """Builds a network with Cambrian; returns facts, and its outputs (N, …) on `inputs_of`."""
    cambrian.host.permit("malloc", "cpu_latency")
    acquire_devices(1, "cpu", launches_at_once)  # as a command does, before the network starts JAX's backend
    function, params, spec = make_network(name)
    start = time.perf_counter()
    executable = cambrian.compile(function, params, spec, batch_size=batch, precision=precision, name=name)
    build_ms = 1e3 * (time.perf_counter() - start)
    inputs = executable.put(inputs_of(spec, batch))
    _launches.append((lambda: executable.launch(inputs), batch))
    lowerings = [layer["lowering"] for layer in executable.plan.values()]
    return {
        "outputs": np.asarray(executable.launch(inputs), np.float64),
        "layers": len(lowerings),
        "taken": sum(lowering != "xla" for lowering in lowerings),
        "build_ms": build_ms,
        "notes": list(executable.notes),
        "size": spec.shape[0],
    }


def prepare_stock(name: str, batch: int) -> np.ndarray:
    """Compiles the network's function by `jax.jit`; returns its outputs (N, …)."""
    function, params, spec = make_network(name)
    inputs, params = jax.device_put((inputs_of(spec, batch), params))
    compiled = jax.jit(function).lower(params, inputs).compile()
    _launches.append((lambda: compiled(params, inputs), batch))
    return np.asarray(compiled(params, inputs), np.float64)


def inputs_of(spec: jax.ShapeDtypeStruct, batch: int) -> np.ndarray:
    """Random inputs (N, …), the same in every process."""
    random, shape = np.random.default_rng(0), (batch, *spec.shape)
    values = random.integers(0, 100, shape) if spec.dtype == np.int32 else random.standard_normal(shape)
    return values.astype(spec.dtype)


def rate(mode: int, seconds: float) -> float:
    """Launches on one thread (mode 0) or two (mode 1) for some seconds; returns images/s."""
    (launch, batch), threads = _launches[-1], _THREADS[mode]
    with low_cpu_latency("cpu"):  # as a stream does, where permitted: on our side
        start = time.perf_counter()
        launches = len(time_launches(launch, threads, least=1, seconds=seconds))
        return batch * launches / (time.perf_counter() - start)


def num_modes() -> int:
    """Returns the number of modes of `rate`."""
    return len(_THREADS)
