"""Predicts time and memory of a configuration from its plan, before anything is built."""

import dataclasses
import functools
import math

import jax.numpy as jnp

from cambrian import models
from cambrian.commands.configuration import Configuration, ModelConfig, batch_sizes
from cambrian.commands.program.resnet import precisions_of
from cambrian.sharding import Layout, MeshShape, OutOfMemory, layouts, local_samples, total_ms


@dataclasses.dataclass(frozen=True, slots=True)
class PredictedCosts:
    """The predicted time and memory of a configuration.

    Attributes:
      launch_ms: time of a launch.
      batch_size: images per launch, over all devices.
      bytes_per_device: memory of each device.
      launches_at_once: number of launches that compute concurrently, over all cards.
    """

    launch_ms: float
    batch_size: int
    bytes_per_device: int
    launches_at_once: int = 1

    @property
    def ms_per_image(self) -> float:
        return self.launch_ms / (self.batch_size * self.launches_at_once)


def predict(configuration: Configuration) -> PredictedCosts | None:
    """Predicts a run on CPU by the current cost table; None if that takes a running backend, or the model isn't known.

    Raises:
      UsageError: if the mesh can't cut the model as the configuration asks.
    """
    if configuration.platform not in ("auto", "cpu") or configuration.artifact or configuration.user_model:
        return None
    if configuration.weights not in ("auto", "random") and not configuration.explicit_config:
        return None  # the weights decide the model
    mesh, model = configuration.mesh, configuration.model
    at_once = configuration.launches_at_once
    launch_ms, batch_size, weight_bytes, working_bytes = _plan_costs(
        model,
        configuration.image_size or model.preprocessing.size,
        mesh,
        tuple([configuration.batch_size] if configuration.batch_size else batch_sizes(mesh, "cpu")),
        tuple(precisions_of(configuration.precision, "cpu")),
        configuration.partition,
        configuration.cards,
        at_once,
        configuration.device_memory_limit_bytes,
    )
    return PredictedCosts(launch_ms, batch_size, weight_bytes + at_once * working_bytes, configuration.cards * at_once)


@functools.cache
def _plan_costs(
    model: ModelConfig,
    image_size: int | tuple[int, int],
    mesh: MeshShape,
    sizes: tuple[int, ...],
    precisions: tuple[str, ...],
    partition: str,
    cards: int,
    at_once: int,
    memory_limit_bytes: int | None,
) -> tuple[float, int, int, int]:
    """Milliseconds and samples of a launch, and bytes of weights and of the largest layer's activations on a device."""
    architecture = models.Architecture.resnet(model.depth, model.stem, model.num_classes)
    network = models.network(architecture, image_size, precisions[0])
    table = models.current_cost_table("cpu")
    # All cards compute at once, as one mesh; launches on a device share its memory.
    mesh, sizes = MeshShape(mesh.model, mesh.data * cards), tuple(size * cards for size in sizes)
    plans = models.Plans(network, mesh, table, partition, at_once, memory_limit_bytes)
    setting = plans.fastest(precisions, sizes)
    try:
        plan = plans.plan(setting)
    except OutOfMemory:  # the need is shown beside the limit
        plan = dataclasses.replace(plans, memory_limit_bytes=None).with_table(table).plan(setting)
    mesh, batch_size = plans.planned(setting)
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
        setting.batch_size // cards,
        sum(cost.weight_bytes for cost in plan.costs),
        activations * jnp.dtype(setting.precision).itemsize,
    )
