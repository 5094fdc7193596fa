"""Builds a Program from an architecture, its weights and a plan."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec as P

from cambrian.models.execution.execute_plan import apply_planned
from cambrian.models.execution.make_plan import check_lowerings
from cambrian.models.execution.place_params import params_by_layer, place_params
from cambrian.models.lowerings import LOWERINGS
from cambrian.models.resnet.architecture import Architecture, network as network_of
from cambrian.models.resnet.folding import fold
from cambrian.sharding import (
    DATA_AXIS,
    MODEL_AXIS,
    Layout,
    Plan,
    Program,
    TensorSpec,
    UsageError,
    layouts,
    mesh_shape,
)
from cambrian.sharding.plan_semantics import images_layout

# Largest relative error of the logits against unsharded float32.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
_REFERENCE_BATCH = 8  # one small executable serves any number of images

_BATCH_SPEC = {
    Layout.WHOLE: P(DATA_AXIS),
    Layout.SAMPLES: P((DATA_AXIS, MODEL_AXIS)),
    Layout.ROWS: P(DATA_AXIS, MODEL_AXIS),
}


def build_program(
    architecture: Architecture,
    variables: Mapping[str, np.ndarray],
    plan: Plan,
    mesh: Mesh,
    *,
    image_size: int | tuple[int, int],
    batch_size: int,
    precision: str = "float32",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    metadata: Mapping[str, Any] | None = None,
) -> Program:
    """Specialises a network to a mesh, a plan and a precision.

    The program takes uint8 images (batch_size, height, width, 3), scales them to 0…1, normalises them by `mean` and
    `std` on the device, and returns float32 logits (batch_size, num_classes).

    Args:
      architecture: architecture of the network.
      variables: weights, as returned by `models.random_variables` or `models.read_weights`.
      plan: plan of the network.
      mesh: mesh from `make_mesh`.
      image_size: height and width of the images in pixels; one number for squares.
      batch_size: global number of images per launch.
      precision: float32 in full precision, or bfloat16 operands with float32 accumulation.
      mean: mean of each channel, of pixels scaled to 0…1.
      std: standard deviation of each channel, of pixels scaled to 0…1.
      metadata: JSON-compatible facts stored with the program, besides mean and std.

    Raises:
      UsageError: if the mesh can't cut a layer as planned (names layer, dimension and axis), or a lowering doesn't
        compute its layer.
    """
    if precision not in TOLERANCE:
        raise UsageError(f"precision must be one of {', '.join(TOLERANCE)}, got {precision!r}")
    shape, network = mesh_shape(mesh), network_of(architecture, image_size)
    plan.check(network, shape, batch_size)
    check_lowerings(network, plan)
    params, param_specs = place_params(network, plan, fold(architecture, variables), shape, batch_size, precision)

    layout = images_layout(network[0], plan[network[0].name].partition)
    input_spec = TensorSpec("images", (batch_size, *network[0].in_shape), "uint8", _BATCH_SPEC[layout])
    makes = layouts(network[-1], plan[network[-1].name].partition)[1]
    logits_spec = P(DATA_AXIS, MODEL_AXIS) if makes == Layout.CHANNELS else _BATCH_SPEC[makes]
    output_spec = TensorSpec("logits", (batch_size, architecture.num_classes), "float32", logits_spec)
    names = [spec.name for spec in param_specs]
    cut = [spec.partition_spec != P() for spec in param_specs]
    preprocess = normaliser(mean, std)
    isolate = mesh.devices.flat[0].platform == "cpu"

    def local_apply(params: Sequence[jax.Array], images: jax.Array) -> jax.Array:
        local = [param[0] if is_cut else param for param, is_cut in zip(params, cut, strict=True)]
        images = preprocess(images).astype(precision)
        logits = apply_planned(network, plan, params_by_layer(names, local), images, layout, isolate)
        return logits.reshape(logits.shape[0], logits.shape[-1])

    apply = jax.shard_map(
        local_apply,
        mesh=mesh,
        in_specs=([spec.partition_spec for spec in param_specs], input_spec.partition_spec),
        out_specs=output_spec.partition_spec,
        check_vma=False,  # whole activations are equal on the devices of a group, which JAX can't infer
    )
    return Program(
        name=architecture.name,
        apply=apply,
        params=params,
        param_specs=param_specs,
        input_spec=input_spec,
        output_spec=output_spec,
        mesh=mesh,
        reference=_reference(architecture, variables, preprocess),
        tolerance=TOLERANCE[precision],
        network=network,
        plan=plan,
        custom_calls=_custom_calls(plan),
        metadata={**(metadata or {}), "mean": list(mean), "std": list(std), "precision": precision},
        notes=plan.notes,
    )


def normaliser(mean: Sequence[float], std: Sequence[float]) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that maps uint8 images (N, H, W, C) to float32: (images / 255 - mean) / std, per channel."""
    scale = np.asarray(1.0 / (255.0 * np.asarray(std)), np.float32)
    shift = np.asarray(-np.asarray(mean) / np.asarray(std), np.float32)
    return lambda images: images.astype(jnp.float32) * scale + shift


def _custom_calls(plan: Plan) -> tuple[str, ...]:
    return tuple(sorted({call for _, layer in plan.layers if (call := LOWERINGS[layer.lowering].custom_call)}))


def _reference(
    architecture: Architecture, variables: Mapping[str, np.ndarray], preprocess: Callable[[jax.Array], jax.Array]
) -> Callable[[np.ndarray], np.ndarray]:
    def reference(images: np.ndarray) -> np.ndarray:
        # Imported here because building a program works without Flax.
        from cambrian.models.resnet.flax_resnet import inference_function

        infer, normalise = inference_function(architecture, variables), jax.jit(preprocess)

        def compute(start: int) -> np.ndarray:
            chunk = images[start : start + _REFERENCE_BATCH]
            padded = np.zeros((_REFERENCE_BATCH, *images.shape[1:]), images.dtype)
            padded[: len(chunk)] = chunk
            return np.asarray(infer(normalise(padded)))[: len(chunk)]

        first, *others = range(0, len(images), _REFERENCE_BATCH)
        outputs = [compute(first)]  # compiles
        with ThreadPoolExecutor(2) as pool:  # launches of few images leave cores idle
            outputs += pool.map(compute, others)
        return np.concatenate(outputs)

    return reference
