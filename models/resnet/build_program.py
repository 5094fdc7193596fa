"""Builds a Program from a ResNet's weights and a plan."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cambrian.models.execution import build_program as planned
from cambrian.models.execution.choose_setting import Chosen
from cambrian.models.execution.settings import Setting
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.quantization import Calibration, Quantized, quantized
from cambrian.models.graph.read_layers import layered_network, read_layers
from cambrian.models.graph.trace import trace
from cambrian.models.normalise import normaliser
from cambrian.models.resnet.architecture import IMAGE_CHANNELS, Architecture
from cambrian.models.resnet.flax_resnet import as_function, load_resnet
from cambrian.sharding import Network, Plan, Program

_REFERENCE_BATCH = 8  # one small executable serves any number of images


def build_program(
    architecture: Architecture,
    variables: Mapping[str, np.ndarray],
    plan: Plan | Callable[[Network], Chosen],
    mesh: Mesh,
    *,
    image_size: int | tuple[int, int],
    batch_size: int = 0,
    precision: str = "float32",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    compile_reference: bool = False,
    quantized: Quantized | None = None,
) -> Program:
    """Specialises a ResNet to a mesh, a plan and a precision.

    The program takes uint8 images (batch_size, height, width, 3), scales them to 0…1, normalises them by `mean` and
    `std` on the device, and returns float32 logits (batch_size, num_classes).

    Args:
      architecture: architecture of the network.
      variables: weights, as returned by `models.random_variables` or `models.read_weights`.
      plan: plan of the network, or a function that chooses it and the setting for its layers.
      mesh: mesh from `make_mesh`.
      image_size: height and width of the images in pixels; one number for squares.
      batch_size: global number of images per launch, with a plan.
      precision: float32 in full precision, bfloat16 operands with float32 accumulation, or int8, with a plan.
      mean: mean of each channel, of pixels scaled to 0…1.
      std: standard deviation of each channel, of pixels scaled to 0…1.
      compile_reference: whether to compile the reference meanwhile, in a thread, because it will be called.
      quantized: the same network from `quantize`, for int8.

    Raises:
      UsageError: as `models.execution.build_program`; or if a variable is missing, left over or of the wrong shape
        (names the variable).
    """
    if quantized is None:
        function, params = _on_pixels(architecture, variables, mean, std)
        reference = _reference(function, params, _pixels(_REFERENCE_BATCH, image_size), compile_reference)
        network = layered_network(function, params, _pixels(1, image_size))
    else:
        network, reference = read_layers(quantized.graph), quantized.reference
    setting, notes = Setting(precision, batch_size), ()
    if not isinstance(plan, Plan):
        chosen = plan(network.layers)
        plan, setting, notes = chosen.plan, chosen.setting, chosen.notes
    program = planned.build_program(
        network,
        plan,
        mesh,
        name=architecture.name,
        inputs=_pixels(setting.batch_size, image_size),
        reference=reference,
        precision=setting.precision,
        tolerance=None if quantized is None else quantized.tolerance,
        metadata={} if quantized is None else {"quantization": quantized.facts},
    )
    before = () if quantized is None else quantized.notes
    return dataclasses.replace(program, notes=(*before, *program.notes, *notes))


def quantize(
    architecture: Architecture,
    variables: Mapping[str, np.ndarray],
    calibration: Calibration,
    *,
    image_size: int | tuple[int, int],
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Quantized:
    """Quantises a ResNet on uint8 images; arguments as `build_program`.

    Raises:
      UsageError: as `build_program` and `models.graph.quantization.quantized`.
    """
    function, params = _on_pixels(architecture, variables, mean, std)
    graph, _ = trace(function, params, _pixels(_REFERENCE_BATCH, image_size))
    return quantized(optimized(graph), calibration)


def _on_pixels(
    architecture: Architecture, variables: Mapping[str, np.ndarray], mean: Sequence[float], std: Sequence[float]
) -> tuple[Callable[[Any, jax.Array], jax.Array], Any]:
    infer, params = as_function(load_resnet(architecture, variables))
    normalise = normaliser(mean, std)

    def function(params: Any, images: jax.Array) -> jax.Array:
        return infer(params, normalise(images))

    return function, params


def _pixels(batch_size: int, image_size: int | tuple[int, int]) -> jax.ShapeDtypeStruct:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return jax.ShapeDtypeStruct((batch_size, height, width, IMAGE_CHANNELS), "uint8")


def _reference(
    function: Callable[[Any, jax.Array], jax.Array], params: Any, inputs: jax.ShapeDtypeStruct, compile_now: bool
) -> Callable[[np.ndarray], np.ndarray]:
    compiler = ThreadPoolExecutor(1)

    @functools.cache
    def compiling() -> Future[jax.stages.Compiled]:
        return compiler.submit(lambda: jax.jit(function).lower(params, inputs).compile())

    if compile_now:
        compiling()

    def reference(images: np.ndarray) -> np.ndarray:
        infer = compiling().result()

        def compute(start: int) -> np.ndarray:
            chunk = images[start : start + _REFERENCE_BATCH]
            padded = np.zeros((_REFERENCE_BATCH, *images.shape[1:]), images.dtype)
            padded[: len(chunk)] = chunk
            return np.asarray(infer(params, padded))[: len(chunk)]

        with ThreadPoolExecutor(2) as pool:  # launches of few images leave cores idle
            return np.concatenate(list(pool.map(compute, range(0, len(images), _REFERENCE_BATCH))))

    return reference
