"""Cambrian, compiled ahead of time and run through the executable's own interface."""

import dataclasses
import functools
import itertools

import jax
import numpy as np

from benchmarks.sides.problem import Problem, Runner
from cambrian import engine, models
from cambrian.commands.configuration import CALIBRATE_S
from cambrian.models.graph.read_layers import read_layers
from cambrian.sharding import MeshShape, make_mesh
from cambrian.sharding.host import acquire_devices, host, launches_at_once, return_freed_memory

_THREADS = {"call": 1, "stream": 2}


def make_runner(problem: Problem, batch: int, precision: str, mode: str) -> Runner:
    """Makes a runner on uint8 images (N, H, W, C); transfer and normalisation count as part of the launch.

    `mode` is a mesh and a way to launch: `1x1 call`, one batch after another, or `1x1 stream`, by two host threads.
    """
    way = mode.split()[1]
    shape, threads, at_once = _settings(mode, precision)
    devices = acquire(mode, precision)
    mesh = make_mesh(shape, devices)
    quantized = _quantized(problem) if precision == "int8" else None
    network = problem.network if quantized is None else read_layers(quantized.graph).layers
    plans = models.Plans(network, shape, models.current_cost_table("cpu"), launches_at_once=at_once)
    chosen = models.choose_setting(plans, [precision], [batch], mesh, CALIBRATE_S)
    program = problem.program(chosen.plan, mesh, batch, precision, quantized)
    # Drops the program, whose host weights would stay in memory for every batch size.
    executable = dataclasses.replace(engine.compile_program(program), program=None)
    images = problem.images[:batch]

    def call(launches: int) -> np.ndarray:
        for _ in range(launches):
            logits = executable(images)
        return logits

    def stream(launches: int) -> np.ndarray:
        outputs = executable.stream(itertools.repeat(images, launches), threads)
        return list(outputs)[-1]

    return Runner(call) if way == "call" else Runner(stream, threads)


def acquire(mode: str, precision: str) -> list[jax.Device]:
    """Returns the devices of a mode; first called before JAX starts, which then keeps its number of devices.

    Sets the process up as the command does.
    """
    shape, _, at_once = _settings(mode, precision)
    host.permit("cpu_latency", "malloc")
    return_freed_memory(shape.num_devices)
    return acquire_devices(shape.num_devices, "cpu", at_once)[0]


def _settings(mode: str, precision: str) -> tuple[MeshShape, int, int]:
    """Mesh, number of host threads, and number of launches at once."""
    mesh, way = mode.split()
    shape, threads = MeshShape.parse(mesh), _THREADS[way]
    return shape, threads, launches_at_once(shape.num_devices, threads, precision)


@functools.cache
def _quantized(problem: Problem):
    calibration = models.Calibration(problem.images, "the problem's images", max_top1_drop=100.0)
    return models.quantize(problem.architecture, problem.variables, calibration, **problem.pixels)
