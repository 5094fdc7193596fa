"""A Program from an architecture, its weights and a plan."""

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

    The program takes uint8 images (batch_size, height, width, 3), scales them to 0…1 and normalises them by
    `mean` and `std` on the device, and gives float32 logits (batch_size, num_classes).

    Args:
      variables: weights as `models.random_variables` or `models.read_weights` give them.
      precision: float32 (full), or bfloat16 operands with float32 accumulation.
      metadata: travels with the program, beside mean and std.

    Raises:
      UsageError: if the mesh can't cut a layer as the plan says, naming layer, dimension and axis, or a lowering
        doesn't fit its layer.
    """
    if precision not in TOLERANCE:
        raise UsageError(f"precision must be one of {', '.join(TOLERANCE)}, got {precision!r}")
    shape, network = mesh_shape(mesh), network_of(architecture, image_size)
    plan.check(network, shape, batch_size)
    check_lowerings(network, plan)
    params, param_specs = place_params(network, plan, fold(architecture, variables), shape, batch_size, precision)

    reads = layouts(network[0], plan[network[0].name].partition)[0]
    images_layout = reads if reads in _BATCH_SPEC else Layout.WHOLE
    input_spec = TensorSpec("images", (batch_size, *network[0].in_shape), "uint8", _BATCH_SPEC[images_layout])
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
        logits = apply_planned(network, plan, params_by_layer(names, local), images, images_layout, isolate)
        return logits.reshape(logits.shape[0], logits.shape[-1])

    apply = jax.shard_map(
        local_apply,
        mesh=mesh,
        in_specs=([spec.partition_spec for spec in param_specs], input_spec.partition_spec),
        out_specs=output_spec.partition_spec,
        check_vma=False,  # a gathered or whole activation is the same on a group's devices; JAX can't infer it
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
    """The function from uint8 images (N, H, W, C) to float32: scaled to 0…1, minus `mean`, over `std`, per channel."""
    scale = np.asarray(1.0 / (255.0 * np.asarray(std)), np.float32)
    shift = np.asarray(-np.asarray(mean) / np.asarray(std), np.float32)
    return lambda images: images.astype(jnp.float32) * scale + shift


def _custom_calls(plan: Plan) -> tuple[str, ...]:
    return tuple(sorted({call for _, layer in plan.layers if (call := LOWERINGS[layer.lowering].custom_call)}))


def _reference(
    architecture: Architecture, variables: Mapping[str, np.ndarray], preprocess: Callable[[jax.Array], jax.Array]
) -> Callable[[np.ndarray], np.ndarray]:
    def reference(images: np.ndarray) -> np.ndarray:
        # Flax is needed only here: building from folded weights does without it.
        from cambrian.models.resnet.flax_resnet import inference_function

        infer, normalise = inference_function(architecture, variables), jax.jit(preprocess)

        def compute(start: int) -> np.ndarray:
            chunk = images[start : start + _REFERENCE_BATCH]
            padded = np.zeros((_REFERENCE_BATCH, *images.shape[1:]), images.dtype)
            padded[: len(chunk)] = chunk
            return np.asarray(infer(normalise(padded)))[: len(chunk)]

        first, *others = range(0, len(images), _REFERENCE_BATCH)
        outputs = [compute(first)]  # compiles
        with ThreadPoolExecutor(2) as pool:  # a launch of few images leaves cores idle
            outputs += pool.map(compute, others)
        return np.concatenate(outputs)

    return reference
