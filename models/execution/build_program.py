"""Builds a Program from a network in layers and a plan."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec as P

from cambrian.models.execution.execute_plan import apply_planned
from cambrian.models.execution.layered_network import LayeredNetwork
from cambrian.models.execution.make_plan import check_lowerings
from cambrian.models.execution.place_params import params_by_layer, place_params
from cambrian.models.lowerings import LOWERINGS
from cambrian.sharding import (
    DATA_AXIS,
    MODEL_AXIS,
    Kind,
    Layout,
    Plan,
    Program,
    TensorSpec,
    UsageError,
    layouts,
    mesh_shape,
    refusing_derivatives,
    refusing_other_inputs,
)
from cambrian.sharding.plan_semantics import images_layout

# Largest relative error of the logits against unsharded float32, or of int8 against the same integers.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "int8": 2e-2}

_BATCH_SPEC = {
    Layout.WHOLE: P(DATA_AXIS),
    Layout.SAMPLES: P((DATA_AXIS, MODEL_AXIS)),
    Layout.ROWS: P(DATA_AXIS, MODEL_AXIS),
}


def build_program(
    network: LayeredNetwork,
    plan: Plan,
    mesh: Mesh,
    *,
    name: str,
    inputs: jax.ShapeDtypeStruct,
    reference: Callable[[np.ndarray], np.ndarray],
    precision: str = "float32",
    tolerance: float | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Program:
    """Specialises a network to a mesh, a plan and a precision.

    Args:
      network: layers and weights.
      plan: plan of the network.
      mesh: mesh from `make_mesh`.
      name: name of the model.
      inputs: global shape (N, H, W, C) and dtype of the inputs of a launch; the outputs are (N, …) float32.
      reference: function `reference(inputs) -> outputs` on the host, unsharded, in float32.
      precision: float32 in full precision, bfloat16 operands with float32 accumulation, or int8 for a network with
        quantised layers, whose others are in float32.
      tolerance: largest relative error of the outputs; None for 1e-4 in float32, 2e-2 in bfloat16 and int8.
      metadata: JSON-compatible facts stored with the program.

    Raises:
      UsageError: if the mesh can't cut a layer as planned (names layer, dimension and axis), or a lowering doesn't
        compute its layer.
    """
    if precision not in TOLERANCE:
        raise UsageError(f"precision must be one of {', '.join(TOLERANCE)}, got {precision!r}")
    shape, layers, batch_size = mesh_shape(mesh), network.layers, inputs.shape[0]
    plan.check(layers, shape, batch_size)
    check_lowerings(layers, plan)
    dtype = "float32" if precision == "int8" else precision
    params, param_specs = place_params(network, plan, shape, batch_size, precision)

    layout = images_layout(layers[0], plan[layers[0].name].partition)
    input_spec = TensorSpec("images", inputs.shape, str(inputs.dtype), _BATCH_SPEC[layout])
    last = layers[-1]
    makes = layouts(last, plan[last.name].partition)[1]
    is_flat = last.kind in (Kind.DENSE, Kind.MEAN_POOL)
    output_spec = TensorSpec(
        "logits" if is_flat else "outputs",
        (batch_size, *(last.out_shape[2:] if is_flat else last.out_shape)),
        "float32",
        _output_spec(makes, is_flat),
    )
    names = [spec.name for spec in param_specs]
    cut = [spec.partition_spec != P() for spec in param_specs]
    isolate = mesh.devices.flat[0].platform == "cpu"

    def local_apply(params: Sequence[jax.Array], images: jax.Array) -> jax.Array:
        local = [param[0] if is_cut else param for param, is_cut in zip(params, cut, strict=True)]
        by_layer = params_by_layer(names, local)
        outputs = apply_planned(network, plan, by_layer, images, layout, jnp.dtype(dtype), shape, isolate)
        return (outputs.reshape(outputs.shape[0], -1) if is_flat else outputs).astype("float32")

    apply = jax.shard_map(
        local_apply,
        mesh=mesh,
        in_specs=([spec.partition_spec for spec in param_specs], input_spec.partition_spec),
        out_specs=output_spec.partition_spec,
        check_vma=False,  # whole activations are equal on the devices of a group, which JAX can't infer
    )
    return Program(
        name=name,
        apply=refusing_other_inputs(refusing_derivatives(apply), input_spec),
        params=params,
        param_specs=param_specs,
        input_spec=input_spec,
        output_spec=output_spec,
        mesh=mesh,
        reference=reference,
        tolerance=TOLERANCE[precision] if tolerance is None else tolerance,
        network=layers,
        plan=plan,
        custom_calls=custom_calls(plan),
        metadata={**(metadata or {}), "precision": precision},
        notes=plan.notes,
    )


def _output_spec(layout: Layout, is_flat: bool) -> P:
    if layout == Layout.CHANNELS:
        return P(DATA_AXIS, MODEL_AXIS) if is_flat else P(DATA_AXIS, None, None, MODEL_AXIS)
    return _BATCH_SPEC[layout]


def custom_calls(plan: Plan) -> tuple[str, ...]:
    """Returns the targets of the custom calls that the lowerings of a plan make; what is left to XLA has none."""
    lowerings = {LOWERINGS[layer.lowering] for _, layer in plan.layers if layer.lowering in LOWERINGS}
    return tuple(sorted({lowering.custom_call for lowering in lowerings if lowering.custom_call}))
