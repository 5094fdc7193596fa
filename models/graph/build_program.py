"""Builds a Program from a function: traced, optimised, and kept only where it is measured to be faster."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec as P

from cambrian.models.costs.files import current_cost_table
from cambrian.models.execution import build_program as planned
from cambrian.models.execution.build_program import TOLERANCE
from cambrian.models.execution.calibrate import calibrated
from cambrian.models.execution.in_chunks import in_chunks
from cambrian.models.execution.layered_network import LayeredNetwork
from cambrian.models.execution.settings import Plans
from cambrian.models.graph.choose_lowerings import MeasuredCosts, choose_lowerings
from cambrian.models.graph.constants import compact
from cambrian.models.graph.fastest_program import fastest_program
from cambrian.models.graph.fused_convolution import FusedConvolution
from cambrian.models.graph.graph import Graph
from cambrian.models.graph.micro_batch import micro_batch
from cambrian.models.graph.over_samples import marked_as_mixing, operation_over_samples
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.plan_of_graph import plan_of_graph
from cambrian.models.graph.precision import in_bfloat16
from cambrian.models.graph.quantization import Calibration, quantized
from cambrian.models.graph.read_layers import NotLayered, read_layers
from cambrian.models.graph.scan import nodes_and_repetitions
from cambrian.models.graph.trace import trace
from cambrian.models.lowerings import LOWERINGS
from cambrian.sharding import (
    DATA_AXIS,
    MODEL_AXIS,
    Partition,
    Program,
    TensorSpec,
    UsageError,
    mesh_shape,
    program_from_function,
    refusing_other_inputs,
)

_BY_SAMPLES = P((DATA_AXIS, MODEL_AXIS))


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
    shape, samples = mesh_shape(mesh), jax.tree.leaves(inputs)[0].shape[0]
    shape.check_batch_size(samples)
    by_samples = samples % mesh.size == 0
    cut = _BY_SAMPLES if by_samples else P(DATA_AXIS)
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
    local_samples = samples // (mesh.size if by_samples else shape.data)
    local = jax.tree.map(lambda each: jax.ShapeDtypeStruct((local_samples, *each.shape[1:]), each.dtype), inputs)
    graph, _ = trace(function, params, local)
    mixing = _operation_over_samples(function, params, inputs, graph)
    if mixing is not None:
        stock = marked_as_mixing(stock, mixing)
        if local_samples < samples and partition in ("auto", "samples"):
            if precision != "float32":
                raise UsageError(
                    f"mesh {shape} in {precision} must be able to cut the samples, but {name} mixes them ({mixing})"
                )
            return dataclasses.replace(stock, notes=(*stock.notes, "computed as JAX compiles it"))
    given_tolerance = tolerance
    if tolerance is None:
        tolerance = TOLERANCE["bfloat16" if _has_narrow_floats(graph) else precision]
    stock = dataclasses.replace(stock, tolerance=tolerance)
    for value, spec in zip(graph.outputs, jax.tree.leaves(stock.output_spec), strict=True):
        if value.shape != (expected := (local_samples, *spec.shape[1:])):
            raise UsageError(f"expected {spec.name} {expected} for {local_samples} samples, got {value.shape}")
    graph = optimized(graph)
    reference = None
    if precision == "int8":
        if calibration is None:
            raise UsageError(f"precision int8 needs calibration, samples of the inputs of {name}, got None")
        found = quantized(graph, calibration)
        graph, reference = found.graph, found.reference
        metadata, notes = {**stock.metadata, "quantization": found.facts}, (*stock.notes, *found.notes)
        tolerance = found.tolerance if given_tolerance is None else given_tolerance
        stock = dataclasses.replace(stock, reference=reference, tolerance=tolerance, metadata=metadata, notes=notes)
    programs = []
    try:
        network = read_layers(graph)
        table = current_cost_table(mesh.devices.flat[0].platform)
        plans = Plans(network.layers, shape, table, partition, launches_at_once, memory_limit_bytes)
        programs.append(_program_of_layers(network, plans, stock, calibrate_s))
    except NotLayered as reason:
        if partition not in ("auto", "samples"):
            raise UsageError(f"partition must be auto or samples for {name}, which contains {reason}") from None
        if not by_samples:
            raise UsageError(
                f"the batch size must be a multiple of the mesh's {mesh.size} devices for {name}, which contains "
                f"{reason}, got {samples}"
            ) from None
    if by_samples and partition in ("auto", "samples"):
        costs = MeasuredCosts.of_machine(mesh.devices.flat[0].platform)
        graph = in_bfloat16(graph) if precision == "bfloat16" else graph
        graphs = [graph]
        if precision != "int8" and mixing is None and (size := micro_batch(graph)) < local_samples:
            graphs += _for_samples(size, function, params, local, precision)
        for number, each in enumerate(graphs):
            seconds = (end - time.perf_counter()) / (len(graphs) - number)
            in_loop = each.inputs[0].shape[0] < local_samples
            chosen = choose_lowerings(each, mesh.devices.flat[0], costs, seconds, in_loop)
            programs.append(_program_of_graph(chosen, stock, costs, local_samples))
    stock_allowed = precision == "float32" and partition in ("auto", "samples")
    return fastest_program(programs, stock, stock_allowed=stock_allowed, reference=reference)


def _operation_over_samples(function: Callable[[Any, Any], Any], params: Any, inputs: Any, local: Graph) -> str | None:
    """An operation that mixes samples; None if none is found, or the function is bound to its number of samples."""
    if (samples := jax.tree.leaves(inputs)[0].shape[0]) == 1:
        return None
    is_whole = local.inputs[0].shape[0] == samples
    whole = local if is_whole else trace(function, params, inputs)[0]
    twice = _traced(2 * samples, function, params, inputs)
    return None if twice is None else operation_over_samples(whole, twice)


def _for_samples(
    samples: int, function: Callable[[Any, Any], Any], params: Any, inputs: Any, precision: str
) -> list[Graph]:
    """The optimised graph of a function for another number of samples; none if it is bound to that of `inputs`."""
    graph = _traced(samples, function, params, inputs)
    if graph is None or any(value.shape[:1] != (samples,) for value in graph.outputs):
        return []
    graph = optimized(graph)
    return [in_bfloat16(graph) if precision == "bfloat16" else graph]


def _traced(samples: int, function: Callable[[Any, Any], Any], params: Any, inputs: Any) -> Graph | None:
    resized = jax.tree.map(lambda each: jax.ShapeDtypeStruct((samples, *each.shape[1:]), each.dtype), inputs)
    try:
        return trace(function, params, resized)[0]
    except Exception:  # whatever the function raises that is bound to its number of samples
        return None


def _has_narrow_floats(graph: Graph) -> bool:
    dtypes = {value.dtype for node in graph.nodes for value in node.outputs}
    return any(jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4 for dtype in dtypes)


def _program_of_layers(network: LayeredNetwork, plans: Plans, stock: Program, calibrate_s: float) -> Program:
    mesh, precision = stock.mesh, stock.metadata["precision"]
    if not isinstance(stock.input_spec, TensorSpec) or not isinstance(stock.output_spec, TensorSpec):
        raise NotLayered("inputs or results in a pytree")
    inputs = jax.ShapeDtypeStruct(stock.input_spec.shape, stock.input_spec.dtype)
    chosen = calibrated(plans, [precision], [inputs.shape[0]], mesh, calibrate_s)
    program = planned.build_program(
        network,
        chosen.plans.plan(chosen.setting),
        mesh,
        name=stock.name,
        inputs=inputs,
        reference=stock.reference,
        precision=precision,
        tolerance=stock.tolerance,
        metadata=stock.metadata,
    )
    return dataclasses.replace(program, notes=(*stock.notes, *program.notes, *chosen.notes))


def _program_of_graph(graph: Graph, stock: Program, costs: MeasuredCosts, samples: int) -> Program:
    """The program of a graph that computes all samples of a device, or a micro-batch of them."""
    mesh, chunks = stock.mesh, samples // graph.inputs[0].shape[0]
    every = {constant: compact(constant.array) for constant in graph.constants()}
    scalars = {constant: jnp.asarray(array) for constant, array in every.items() if array.size == 1}
    constants = [constant for constant in every if constant not in scalars]
    small = [every[constant] for constant in constants]
    specs = tuple(
        TensorSpec(f"constant.{number:04d}", array.shape, str(array.dtype)) for number, array in enumerate(small)
    )

    structure = jax.tree.structure(stock.output_spec)

    def local_apply(params: Sequence[jax.Array], inputs: Any) -> Any:
        known = {**scalars, **dict(zip(constants, params, strict=True))}

        def compute(inputs: Sequence[jax.Array]) -> list[jax.Array]:
            arrays = {constant: jnp.broadcast_to(array, constant.shape) for constant, array in known.items()}
            return graph.evaluate(arrays, inputs)

        return jax.tree.unflatten(structure, in_chunks(compute, jax.tree.leaves(inputs), chunks))

    apply = jax.shard_map(
        local_apply,
        mesh=mesh,
        in_specs=([P()] * len(specs), _BY_SAMPLES),
        out_specs=_BY_SAMPLES,
        check_vma=False,  # JAX's rules don't know the custom calls
    )
    operations = [node.operation for node, _ in nodes_and_repetitions(graph)]
    lowerings = {operation.lowering for operation in operations if isinstance(operation, FusedConvolution)}
    calls = {LOWERINGS[lowering].custom_call for lowering in lowerings}
    partition = Partition.SAMPLES if mesh_shape(mesh).model > 1 else Partition.WHOLE
    plan = plan_of_graph(graph, partition, costs, chunks)
    metadata = {**stock.metadata, "layer_costs": [dataclasses.asdict(cost) for cost in plan.costs]}
    return dataclasses.replace(
        stock,
        apply=refusing_other_inputs(apply, stock.input_spec),
        params=[np.asarray(array, order="C") for array in small],
        param_specs=specs,
        plan=plan,
        custom_calls=tuple(sorted(call for call in calls if call)),
        metadata=metadata,
        notes=(*stock.notes, *plan.notes),
    )
