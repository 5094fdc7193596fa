"""Builds a Program from a function: traced, optimised, and kept only where it is measured to be faster."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec as P

from cambrian.models.graph.choose_lowerings import MeasuredCosts, choose_lowerings
from cambrian.models.graph.constants import compact
from cambrian.models.graph.fused_convolution import FusedConvolution
from cambrian.models.graph.graph import Graph
from cambrian.models.graph.optimize import optimized
from cambrian.models.graph.plan_of_graph import plan_of_graph
from cambrian.models.graph.precision import in_bfloat16
from cambrian.models.graph.trace import trace
from cambrian.models.lowerings import LOWERINGS
from cambrian.sharding import (
    DATA_AXIS,
    MODEL_AXIS,
    Partition,
    Program,
    TensorSpec,
    UsageError,
    aligned,
    mesh_shape,
    program_from_function,
)
from cambrian.sharding.host import without_compilation_cache

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
_BY_SAMPLES = P((DATA_AXIS, MODEL_AXIS))
_REPLICATED = ((".*", P()),)
_SECONDS = 10.0  # of measuring lowerings
_ROUNDS, _COMPARE_SECONDS = 5, 4.0
_LEAST_GAIN = 1.02
_CLEARLY_SLOWER = 3.0  # in the first launch, which may find its memory for the first time


def build_program(
    function: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    inputs: jax.ShapeDtypeStruct,
    mesh: Mesh,
    *,
    name: str,
    precision: str = "float32",
    tolerance: float | None = None,
) -> Program:
    """Makes a Program from `function(params, inputs) -> outputs`, whose samples are cut over both axes of the mesh.

    The function is traced for the samples of one device. Convolutions and dense layers with constant kernels are
    computed with what follows them by the fastest measured lowering; everything else as JAX computes it. Both programs,
    this one and the function as it is, then run on random inputs on the mesh: if the results differ by more than
    `tolerance`, or it isn't faster, the function is compiled as it is, and a note says so.

    Args:
      function: traceable function that takes all weights in its first argument.
      params: pytree of arrays.
      inputs: global shape (N, …) and dtype of the inputs of a launch.
      mesh: mesh from `make_mesh`.
      name: name of the model.
      precision: `float32`, the function's own, or `bfloat16` for its activations and kernels.
      tolerance: largest relative error of the outputs; None for 1e-4 in float32, 2e-2 in bfloat16.

    Raises:
      UsageError: as `program_from_function`; if N isn't a multiple of the number of devices; or if the function can't
        be computed in bfloat16 within the tolerance.
    """
    if inputs.shape[0] % mesh.size:
        raise UsageError(f"the batch size must be a multiple of the mesh's {mesh.size} devices, got {inputs.shape[0]}")
    tolerance = TOLERANCE[precision] if tolerance is None else tolerance
    stock = program_from_function(
        function,
        params,
        inputs,
        mesh,
        _REPLICATED,
        name=name,
        input_partition_spec=_BY_SAMPLES,
        output_partition_spec=_BY_SAMPLES,
        tolerance=tolerance,
        metadata={"precision": precision},
    )
    local = jax.ShapeDtypeStruct((inputs.shape[0] // mesh.size, *inputs.shape[1:]), inputs.dtype)
    graph, _ = trace(function, params, local)
    expected = (local.shape[0], *stock.output_spec.shape[1:])
    if graph.outputs[0].shape != expected:
        raise UsageError(f"expected outputs {expected} for {local.shape[0]} samples, got {graph.outputs[0].shape}")
    graph = optimized(graph)
    if precision == "bfloat16":
        graph = in_bfloat16(graph)
    device = mesh.devices.flat[0]
    costs = MeasuredCosts.of_machine(device.platform)
    graph = choose_lowerings(graph, device, costs, _SECONDS)
    fast = _program_of_graph(graph, stock, costs)
    return _better(fast, stock, precision)


def _program_of_graph(graph: Graph, stock: Program, costs: MeasuredCosts) -> Program:
    mesh = stock.mesh
    every = {constant: compact(constant.array) for constant in graph.constants()}
    scalars = {constant: jnp.asarray(array) for constant, array in every.items() if array.size == 1}
    constants = [constant for constant in every if constant not in scalars]
    small = [every[constant] for constant in constants]
    specs = tuple(
        TensorSpec(f"constant.{number:04d}", array.shape, str(array.dtype)) for number, array in enumerate(small)
    )

    def local_apply(params: Sequence[jax.Array], inputs: jax.Array) -> jax.Array:
        known = {**scalars, **dict(zip(constants, params, strict=True))}
        arrays = {constant: jnp.broadcast_to(array, constant.shape) for constant, array in known.items()}
        (output,) = graph.evaluate(arrays, [inputs])
        return output

    apply = jax.shard_map(
        local_apply,
        mesh=mesh,
        in_specs=([P()] * len(specs), stock.input_spec.partition_spec),
        out_specs=stock.output_spec.partition_spec,
        check_vma=False,  # JAX's rules don't know the custom calls
    )
    lowerings = {node.operation.lowering for node in graph.nodes if isinstance(node.operation, FusedConvolution)}
    calls = {LOWERINGS[lowering].custom_call for lowering in lowerings}
    partition = Partition.SAMPLES if mesh_shape(mesh).model > 1 else Partition.WHOLE
    plan = plan_of_graph(graph, partition, costs)
    metadata = {**stock.metadata, "layer_costs": [dataclasses.asdict(cost) for cost in plan.costs]}
    return dataclasses.replace(
        stock,
        apply=apply,
        params=[np.asarray(array, order="C") for array in small],
        param_specs=specs,
        plan=plan,
        custom_calls=tuple(sorted(call for call in calls if call)),
        metadata=metadata,
        notes=(*stock.notes, *plan.notes),
    )


def _better(fast: Program, stock: Program, precision: str) -> Program:
    """The faster of two programs on random inputs, if its results are right."""
    inputs = _random_inputs(stock.input_spec)
    launch, launch_stock = (_launch(program, inputs) for program in (fast, stock))
    got = np.asarray(launch(), np.float64)
    start = time.perf_counter()
    expected = np.asarray(launch_stock(), np.float64)
    first_seconds = time.perf_counter() - start
    error = float(np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-30))
    if not error <= fast.tolerance:
        if precision == "bfloat16":
            raise UsageError(
                f"in bfloat16 the outputs must be within {fast.tolerance:g} of float32, got a relative error of "
                f"{error:.1e}; compute in float32, or raise the tolerance"
            )
        return dataclasses.replace(stock, notes=(*stock.notes, _differs(error, stock)))
    seconds, stock_seconds = [_seconds(launch)], [first_seconds]
    if first_seconds < _CLEARLY_SLOWER * seconds[0]:
        stock_seconds = []
        end = time.perf_counter() + _COMPARE_SECONDS
        while not stock_seconds or (len(stock_seconds) < _ROUNDS and time.perf_counter() < end):
            stock_seconds.append(_seconds(launch_stock))
            seconds.append(_seconds(launch))
    gain = statistics.median(stock_seconds) / statistics.median(seconds)
    if precision == "float32" and gain < _LEAST_GAIN:
        note = f"computed as JAX compiles it: the optimised graph was measured {gain:.2f} times as fast"
        return dataclasses.replace(stock, notes=(*stock.notes, note))
    return dataclasses.replace(fast, metadata={**fast.metadata, "gain": round(gain, 3)})


def _seconds(launch: Callable[[], jax.Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(launch())
    return time.perf_counter() - start


def _differs(error: float, stock: Program) -> str:
    mixed = "; it may mix the samples of a batch" if stock.mesh.size > 1 else ""
    return f"computed as JAX compiles it: the optimised graph's outputs differ by {error:.1e}{mixed}"


def _random_inputs(spec: TensorSpec) -> np.ndarray:
    random = np.random.default_rng(0)
    if jnp.issubdtype(spec.dtype, jnp.floating):
        return random.standard_normal(spec.shape, np.float32).astype(spec.dtype)
    return random.integers(0, 2, spec.shape).astype(spec.dtype)


def _launch(program: Program, inputs: np.ndarray) -> Callable[[], jax.Array]:
    shardings = [spec.sharding(program.mesh) for spec in program.param_specs]
    params = jax.device_put([aligned(array) for array in program.params], shardings)
    placed = jax.device_put(inputs, program.input_spec.sharding(program.mesh))
    with without_compilation_cache():
        compiled = jax.jit(program.apply).lower(params, placed).compile()
    return lambda: compiled(params, placed)
