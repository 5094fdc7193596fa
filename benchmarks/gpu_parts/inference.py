"""Images/s from uint8 images in host memory to logits in host memory: ours offline, and stock JAX."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.sides.problem import Problem
from cambrian import engine, models
from cambrian.engine.runtime.memory import device_memory_bytes
from cambrian.models.normalise import normaliser
from cambrian.models.resnet.flax_resnet import load_resnet
from cambrian.sharding import MeshShape, make_mesh
from cambrian.sharding.host import acquire_devices

THREADS = 4  # of ours
IN_FLIGHT = 4  # launches of the other sides
REPEATS = 3


def measure_ours(
    problem: Problem, platform: str, precisions: list[str], batches: list[int], num_images: int
) -> Iterator[dict[str, Any]]:
    """Yields a row for each precision, mesh and batch size; `problem.images` are repeated up to `num_images`.

    Meshes are one device and, on accelerators, all of them on the data axis.
    """
    images = np.resize(problem.images, (num_images, *problem.images.shape[1:]))
    num_devices = 1 if platform == "cpu" else len(jax.local_devices(backend=platform))
    for precision in precisions:
        for data in sorted({1, num_devices}):
            for batch in batches:
                yield _ours(problem, images, MeshShape(1, data), platform, precision, batch)


def measure_stock(problem: Problem, platform: str, batches: list[int], num_images: int) -> Iterator[dict[str, Any]]:
    """Yields a row for each batch size of the Flax model under `jax.jit`, in bfloat16."""
    images = np.resize(problem.images, (num_images, *problem.images.shape[1:]))
    for batch in batches:
        yield _stock(problem, images, platform, batch)


def _ours(
    problem: Problem, images: np.ndarray, shape: MeshShape, platform: str, precision: str, batch: int
) -> dict[str, Any]:
    start = time.perf_counter()
    devices, _ = acquire_devices(shape.num_devices, platform)
    memory = device_memory_bytes(devices)
    plan = models.make_plan(problem.network, shape, batch, platform, precision, memory_limit_bytes=memory)
    program = problem.program(plan, make_mesh(shape, devices), batch, precision)
    with tempfile.TemporaryDirectory() as folder:
        artifact, key = Path(folder, "artifact"), Path(folder, "key")
        engine.save(engine.compile_program(program), artifact, key)
        build_s = time.perf_counter() - start
        start = time.perf_counter()
        executable = engine.load(artifact, devices=devices, signing_key=key)
        load_s = time.perf_counter() - start
    assert executable.parity is not None
    cuts = [images[at : at + batch] for at in range(0, len(images), batch)]
    seconds = median_seconds(lambda: list(executable.stream(cuts, THREADS)))
    return {
        "side": f"ours, offline, {shape}",
        "precision": precision,
        "batch": batch,
        "images_per_second": len(images) / seconds,
        "relative_error": executable.parity.max_relative_error,
        "executable": executable.kind,
        "build_s": build_s,
        "load_s": load_s,
    }


def _stock(problem: Problem, images: np.ndarray, platform: str, batch: int) -> dict[str, Any]:
    device = jax.local_devices(backend=platform)[0]
    model = load_resnet(problem.architecture, problem.variables, jax.numpy.dtype("bfloat16"))
    model.eval()
    graphdef, state = nnx.split(model)
    normalise = normaliser(problem.mean, problem.std)
    apply = jax.jit(lambda state, pixels: nnx.merge(graphdef, state)(normalise(pixels)))
    state = jax.device_put(state, device)
    start = time.perf_counter()
    apply(state, jax.device_put(images[:batch], device)).block_until_ready()
    build_s = time.perf_counter() - start
    seconds = median_seconds(
        lambda: launch_all(images, batch, lambda pixels: apply(state, jax.device_put(pixels, device)), np.asarray)
    )
    return {
        "side": "stock jax.jit",
        "precision": "bfloat16",
        "batch": batch,
        "images_per_second": len(images) / seconds,
        "build_s": build_s,
    }


def launch_all(
    images: np.ndarray, batch: int, launch: Callable[[np.ndarray], Any], fetch: Callable[[Any], Any]
) -> None:
    """Launches whole batches with `IN_FLIGHT` in flight, and fetches all outputs; the last batch is padded."""
    waiting = []
    for at in range(0, len(images), batch):
        pixels = images[at : at + batch]
        if len(pixels) < batch:
            pixels = np.concatenate([pixels, images[: batch - len(pixels)]])
        waiting.append(launch(pixels))
        if len(waiting) == IN_FLIGHT:
            fetch(waiting.pop(0))
    for outputs in waiting:
        fetch(outputs)


def median_seconds(run: Callable[[], Any]) -> float:
    """Returns the median duration of `REPEATS` runs, after one that isn't counted."""
    run()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
