"""Builds a Program from a function: traced, optimised, and kept only where it is measured to be faster."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec as P

from cambrian.models.costs.files import current_cost_table
from cambrian.models.execution import build_program as planned
from cambrian.models.execution.choose_setting import choose_setting
from cambrian.models.execution.layered_network import LayeredNetwork
from cambrian.models.execution.settings import Plans
from cambrian.models.graph.choose_lowerings import MeasuredCosts, choose_lowerings
from cambrian.models.graph.comparison import default_tolerance
from cambrian.models.graph.fastest_program import fastest_program, marked_by_results
from cambrian.models.graph.graph import Graph
from cambrian.models.graph.micro_batch import micro_batch
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.precision import in_bfloat16
from cambrian.models.graph.program_of_graph import BY_SAMPLES, program_of_graph
from cambrian.models.graph.quantization import Calibration, quantized
from cambrian.models.graph.read_layers import NotLayered, read_layers
from cambrian.models.graph.sample_mixing import marked_as_mixing, mixing_operation, operations, resized
from cambrian.models.graph.trace import trace, trace_abstractly
from cambrian.sharding import (
    DATA_AXIS,
    Program,
    TensorSpec,
    UsageError,
    mesh_shape,
    program_from_function,
)


def build_program(
    function: Callable[[Any, Any], Any],
    params: Any,
    inputs: Any,
    mesh: Mesh,
    *,
    name: str,
    precision: str = "float32",
    partition: str = "auto",
    tolerance: float | None = None,
    launches_at_once: int = 1,
    memory_limit_bytes: int | None = None,
    calibrate_s: float = 0.0,
    calibration: Calibration | None = None,
) -> Program:
    """Makes a Program from `function(params, inputs) -> outputs`.

    The function is traced for the samples of one device. There are up to four programs: the function as it is; its
    graph with convolutions and dense layers, and what follows them, computed by the fastest measured lowering; the same
    for as many samples at a time as the caches hold; and, if it consists of layers alone, the planned layers. All but
    the last cut the samples over both axes of the mesh, the last as its plan says. They run on random inputs on the
    mesh, and the fastest is returned whose results are right.

    Args:
      function: traceable function that takes all weights in its first argument.
      params: pytree of arrays.
      inputs: global shape (N, …) and dtype of the inputs of a launch, as `program_from_function` takes them.
      mesh: mesh from `make_mesh`.
      name: name of the model.
      precision: `float32`, the function's own, `bfloat16` for its activations and kernels, or `int8`.
      partition: how the model axis cuts layers, as `cambrian.sharding.choose_plan` takes it; anything but `auto` and
        `samples` needs a function that consists of layers.
      tolerance: largest relative error of the outputs; None for 1e-4 in float32, 2e-2 in bfloat16 or where the function
        itself computes in less than float32, and in int8 as `quantized` says.
      launches_at_once: number of launches that compute side by side on a single device, for the plan of layers.
      memory_limit_bytes: memory limit of a device, for the plan of layers.
      calibrate_s: seconds in which to measure this machine's costs: of layers, where no table of it is there, then of
        lowerings.
      calibration: for `int8`.

    Raises:
      UsageError: as `program_from_function` and `choose_plan`; if the mesh can't cut the samples of a function that
        doesn't consist of layers, or in less than float32 of one that mixes them; or if the function can't be computed
        as asked within the tolerance.
      OutOfMemory: if no plan fits the limit.
    """
    end = time.perf_counter() + calibrate_s
    shape, samples = mesh_shape(mesh), _num_samples(inputs)
    shape.check_batch_size(samples)
    by_samples = samples % mesh.size == 0
    cut = BY_SAMPLES if by_samples else P(DATA_AXIS)
    stock = program_from_function(
        function,
        params,
        inputs,
        mesh,
        None,
        name=name,
        input_partition_spec=cut,
        output_partition_spec=cut,
        metadata={"precision": precision},
    )
    local = resized(inputs, samples // (mesh.size if by_samples else shape.data))
    mixing = mixing_operation(function, params, inputs)
    stock = stock if mixing is None else marked_as_mixing(stock, mixing)
    reason = None if mixing is None else f"mixes them ({mixing})"
    may_be_left = _num_samples(local) < samples and partition in ("auto", "samples")
    try:
        graph, _ = trace(function, params, local)
    except Exception:  # whatever the function raises that is bound to its number of samples
        if not may_be_left:
            raise
        graph, reason = trace_abstractly(function, params, inputs), reason or f"is bound to {samples} of them"
    if any(name == "shard_map" for name, _, _ in operations(graph)):
        reason = reason or "calls jax.shard_map"
    stock = dataclasses.replace(
        stock, tolerance=default_tolerance(graph, precision) if tolerance is None else tolerance
    )
    if may_be_left and reason is not None:
        return marked_by_results(_left_to_jax(stock, reason))
    _check_results(graph, stock)
    graph, reference = optimized(graph), None
    if precision == "int8":
        itself = functools.partial(jax.jit(function), params)
        graph, stock = _in_int8(graph, itself, stock, calibration, tolerance)
        reference = stock.reference
    programs, cuts_samples = [], partition in ("auto", "samples")
    try:
        network = read_layers(graph)
        table = current_cost_table(mesh.devices.flat[0].platform)
        plans = Plans(network.layers, shape, table, partition, launches_at_once, memory_limit_bytes)
        # With nothing to cut, layers that no table knows aren't worth measuring one by one.
        if shape.model > 1 or not cuts_samples or plans.knows_layers(precision):
            programs.append(_program_of_layers(network, plans, stock, calibrate_s))
    except NotLayered as reason:
        if not cuts_samples:
            raise UsageError(f"partition must be auto or samples for {name}, which contains {reason}") from None
        if not by_samples:
            raise UsageError(
                f"the batch size must be a multiple of the mesh's {mesh.size} devices for {name}, which contains "
                f"{reason}, got {samples}"
            ) from None
    if by_samples and cuts_samples:
        graphs = [in_bfloat16(graph) if precision == "bfloat16" else graph]
        if precision != "int8" and mixing is None:
            graphs += _in_micro_batches(graphs[0], function, params, local, precision)
        programs += _programs_of_graphs(graphs, _num_samples(local), stock, end)
    stock_allowed = precision == "float32" and cuts_samples
    return fastest_program(programs, stock, stock_allowed=stock_allowed, reference=reference)


def _num_samples(inputs: Any) -> int:
    return jax.tree.leaves(inputs)[0].shape[0]


def _left_to_jax(stock: Program, reason: str) -> Program:
    """The function as it is, whose samples no device can compute alone."""
    if (precision := stock.metadata["precision"]) != "float32":
        raise UsageError(
            f"mesh {mesh_shape(stock.mesh)} in {precision} must be able to cut the samples, but {stock.name} {reason}"
        )
    note = f"computed as JAX compiles it: the mesh can't cut the samples, as {stock.name} {reason}"
    return dataclasses.replace(stock, notes=(*stock.notes, note))


def _check_results(graph: Graph, stock: Program) -> None:
    samples = graph.inputs[0].shape[0]
    for value, spec in zip(graph.outputs, jax.tree.leaves(stock.output_spec), strict=True):
        if value.shape != (expected := (samples, *spec.shape[1:])):
            raise UsageError(f"expected {spec.name} {expected} for {samples} samples, got {value.shape}")


def _in_int8(
    graph: Graph,
    function: Callable[[Any], Any],
    stock: Program,
    calibration: Calibration | None,
    tolerance: float | None,
) -> tuple[Graph, Program]:
    """The quantised graph, and the function with the reference of its integers."""
    if calibration is None:
        raise UsageError(f"precision int8 needs calibration, samples of the inputs of {stock.name}, got None")
    given, expected = jax.tree.structure(calibration.inputs), jax.tree.structure(stock.input_spec)
    if given != expected:
        raise UsageError(f"calibration must have the structure of the inputs of {stock.name}, {expected}, got {given}")
    found = quantized(graph, calibration, function)
    stock = dataclasses.replace(
        stock,
        reference=found.reference,
        tolerance=found.tolerance if tolerance is None else tolerance,
        metadata={**stock.metadata, "quantization": found.facts},
        notes=(*stock.notes, *found.notes),
    )
    return found.graph, stock


def _in_micro_batches(
    graph: Graph, function: Callable[[Any, Any], Any], params: Any, inputs: Any, precision: str
) -> list[Graph]:
    """The graph for as many samples as the caches hold; none if these are all, or the function is bound to `inputs`."""
    samples = micro_batch(graph)
    if samples == _num_samples(inputs):
        return []
    try:
        smaller, _ = trace(function, params, resized(inputs, samples))
    except Exception:  # whatever the function raises that is bound to its number of samples
        return []
    if any(value.shape[:1] != (samples,) for value in smaller.outputs):
        return []
    smaller = optimized(smaller)
    return [in_bfloat16(smaller) if precision == "bfloat16" else smaller]


def _programs_of_graphs(graphs: Sequence[Graph], samples: int, stock: Program, end: float) -> list[Program]:
    """The program of each graph, whose lowerings are measured until `end`."""
    device, programs = stock.mesh.devices.flat[0], []
    costs = MeasuredCosts.of_machine(device.platform)
    for number, graph in enumerate(graphs):
        seconds = (end - time.perf_counter()) / (len(graphs) - number)
        in_loop = graph.inputs[0].shape[0] < samples
        chosen = choose_lowerings(graph, device, costs, seconds, in_loop)
        programs.append(program_of_graph(chosen, stock, costs, samples))
    return programs


def _program_of_layers(network: LayeredNetwork, plans: Plans, stock: Program, calibrate_s: float) -> Program:
    mesh, precision = stock.mesh, stock.metadata["precision"]
    if not isinstance(stock.input_spec, TensorSpec) or not isinstance(stock.output_spec, TensorSpec):
        raise NotLayered("inputs or results in a pytree")
    inputs = jax.ShapeDtypeStruct(stock.input_spec.shape, stock.input_spec.dtype)
    chosen = choose_setting(plans, [precision], [inputs.shape[0]], mesh, calibrate_s)
    program = planned.build_program(
        network,
        chosen.plan,
        mesh,
        name=stock.name,
        inputs=inputs,
        reference=stock.reference,
        precision=precision,
        tolerance=stock.tolerance,
        metadata=stock.metadata,
    )
    return dataclasses.replace(program, notes=(*stock.notes, *program.notes, *chosen.notes))
