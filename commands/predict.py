"""Predicts time and memory of a configuration from its plan, before anything is built."""

import dataclasses
import functools
import math

import jax.numpy as jnp

from cambrian import models
from cambrian.commands.configuration import Configuration, ModelConfig, default_batch_size
from cambrian.sharding import Layout, MeshShape, OutOfMemory, layouts, local_samples, total_ms
from cambrian.sharding.host import computes_bfloat16, planned_as


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted time and memory of a configuration.

    Attributes:
      launch_ms: time of a launch.
      batch_size: images per launch, over all devices.
      bytes_per_device: memory of each device.
      launches_at_once: number of launches that compute concurrently.
    """

    launch_ms: float
    batch_size: int
    bytes_per_device: int
    launches_at_once: int = 1

    @property
    def ms_per_image(self) -> float:
        return self.launch_ms / (self.batch_size * self.launches_at_once)


def predict(configuration: Configuration) -> Prediction | None:
    """Predicts a run on CPU by the current cost table; None if that takes a running backend, or the model isn't known.

    Raises:
      UsageError: if the mesh can't cut the model as the configuration asks.
    """
    if configuration.platform not in ("auto", "cpu") or configuration.artifact or configuration.user_model:
        return None
    if configuration.weights not in ("auto", "random") and not configuration.explicit_config:
        return None  # the weights decide the model
    precision = configuration.precision
    if precision == "auto":
        precision = "bfloat16" if computes_bfloat16("cpu") else "float32"
    mesh, model = configuration.mesh, configuration.model
    batch_size = configuration.batch_size or default_batch_size(mesh, "cpu")
    at_once = configuration.launches_at_once
    launch_ms, weight_bytes, working_bytes = _plan_costs(
        model,
        configuration.image_size or model.preprocessing.size,
        *planned_as(mesh, batch_size, at_once),
        precision,
        configuration.partition,
        configuration.device_memory_limit_bytes,
    )
    return Prediction(launch_ms, batch_size, weight_bytes + at_once * working_bytes, at_once)


@functools.cache
def _plan_costs(
    model: ModelConfig,
    image_size: int | tuple[int, int],
    mesh: MeshShape,
    batch_size: int,
    precision: str,
    partition: str,
    memory_limit_bytes: int | None,
) -> tuple[float, int, int]:
    """Milliseconds of a launch, and bytes of weights and of the largest layer's activations on a device."""
    network = models.network(models.Architecture.resnet(model.depth, model.stem, model.num_classes), image_size)
    make_plan = functools.partial(models.make_plan, network, mesh, batch_size, "cpu", precision, partition)
    try:
        plan = make_plan(memory_limit_bytes=memory_limit_bytes)
    except OutOfMemory:  # the need is shown beside the limit
        plan = make_plan()
    activations = max(
        local_samples(plan[layer.name].partition, mesh, batch_size)
        * sum(
            math.prod(shape) // (mesh.model if layout in (Layout.ROWS, Layout.CHANNELS) else 1)
            for shape, layout in zip(
                (layer.in_shape, layer.out_shape), layouts(layer, plan[layer.name].partition), strict=True
            )
        )
        for layer in network
    )
    return (
        total_ms(plan.costs),
        sum(cost.weight_bytes for cost in plan.costs),
        activations * jnp.dtype(precision).itemsize,
    )
