"""The Program that evaluates a graph: the mesh cuts the samples, and each device computes its own."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from cambrian.models.execution.build_program import custom_calls
from cambrian.models.execution.execute_plan import in_chunks
from cambrian.models.graph.choose_lowerings import MeasuredCosts
from cambrian.models.graph.constants import compact
from cambrian.models.graph.graph import Graph
from cambrian.models.graph.plan_of_graph import plan_of_graph
from cambrian.sharding import (
    DATA_AXIS,
    MODEL_AXIS,
    Partition,
    Program,
    TensorSpec,
    mesh_shape,
    refusing_derivatives,
    refusing_other_inputs,
)

BY_SAMPLES = P((DATA_AXIS, MODEL_AXIS))


def program_of_graph(graph: Graph, stock: Program, costs: MeasuredCosts, samples: int) -> Program:
    """The program of a graph that computes all samples of a device, or a micro-batch of them."""
    mesh, chunks = stock.mesh, samples // graph.inputs[0].shape[0]
    every = {constant: compact(constant.array) for constant in graph.constants()}
    # Scalars, and random keys, which no file holds, become part of the program.
    embedded = {
        constant: jnp.asarray(array)
        for constant, array in every.items()
        if array.size == 1 or not isinstance(array, np.ndarray)
    }
    constants = [constant for constant in every if constant not in embedded]
    small = [every[constant] for constant in constants]
    specs = tuple(
        TensorSpec(f"constant.{number:04d}", array.shape, str(array.dtype)) for number, array in enumerate(small)
    )

    structure = jax.tree.structure(stock.output_spec)

    def local_apply(params: Sequence[jax.Array], inputs: Any) -> Any:
        known = {**embedded, **dict(zip(constants, params, strict=True))}

        def compute(inputs: Sequence[jax.Array]) -> list[jax.Array]:
            arrays = {constant: jnp.broadcast_to(array, constant.shape) for constant, array in known.items()}
            return graph.evaluate(arrays, inputs)

        return jax.tree.unflatten(structure, in_chunks(compute, jax.tree.leaves(inputs), chunks))

    apply = jax.shard_map(
        local_apply,
        mesh=mesh,
        in_specs=([P()] * len(specs), BY_SAMPLES),
        out_specs=BY_SAMPLES,
        check_vma=False,  # JAX's rules don't know the custom calls
    )
    partition = Partition.SAMPLES if mesh_shape(mesh).model > 1 else Partition.WHOLE
    plan = plan_of_graph(graph, partition, costs, chunks)
    return dataclasses.replace(
        stock,
        apply=refusing_other_inputs(refusing_derivatives(apply), stock.input_spec),
        params=[np.asarray(array, order="C") for array in small],
        param_specs=specs,
        plan=plan,
        custom_calls=custom_calls(plan),
        notes=(*stock.notes, *plan.notes),
    )
