"""What a configuration is expected to take, by its plan, before anything is built."""

import functools
import math

import models
from engine.configuration import Configuration, ModelConfig, default_batch_size, parse_bytes
from engine.launch import MAX_LAUNCHES_IN_FLIGHT
from engine.prediction import Prediction
from sharding import MeshShape, OutOfMemory, computes_bfloat16, planned_as


def predict(configuration: Configuration) -> Prediction | None:
    """The prediction on CPU by the cost table in force; None where nothing is known before a backend is started.

    Raises:
      UsageError: if the mesh can't cut the model as the configuration asks.
    """
    if configuration.platform not in ("auto", "cpu") or configuration.artifact:
        return None
    if configuration.weights not in ("auto", "random") and not configuration.explicit_config:
        return None  # the weights decide the model
    precision = configuration.precision
    if precision == "auto":
        precision = "bfloat16" if computes_bfloat16("cpu") else "float32"
    mesh, model = configuration.mesh, configuration.model
    batch_size = configuration.batch_size or default_batch_size(mesh, "cpu")
    at_once = configuration.launches_at_once
    limit = configuration.device_memory_limit
    launch_ms, weight_bytes, working_bytes = _plan_costs(
        model,
        configuration.image_size or model.image_size,
        *planned_as(mesh, batch_size, at_once),
        precision,
        configuration.partition,
        parse_bytes(limit) if limit else None,
    )
    in_flight = min(configuration.threads, MAX_LAUNCHES_IN_FLIGHT)
    return Prediction(launch_ms, batch_size, weight_bytes + in_flight * working_bytes, at_once)


@functools.cache
def _plan_costs(
    model: ModelConfig,
    image_size: int,
    mesh: MeshShape,
    batch_size: int,
    precision: str,
    partition: str,
    memory_limit_bytes: int | None,
) -> tuple[float, int, int]:
    """Milliseconds of a launch, and bytes of weights and of the largest layer's activations on a device."""
    network = models.network(models.Architecture.resnet(model.depth, model.stem, model.num_classes), image_size)
    table = models.current_cost_table("cpu")
    make_plan = functools.partial(models.make_plan, network, mesh, batch_size, "cpu", precision, partition, table=table)
    try:
        plan = make_plan(memory_limit_bytes=memory_limit_bytes)
    except OutOfMemory:  # what it would need is told beside the limit
        plan = make_plan()
    costs = models.layer_costs(plan, network, mesh, batch_size, precision, table)
    samples = -(-batch_size // mesh.num_devices)
    activations = samples * max(math.prod(layer.in_shape) + math.prod(layer.out_shape) for layer in network)
    return (
        sum(cost.compute_ms + cost.communication_ms for cost in costs),
        sum(cost.weight_bytes for cost in costs),
        activations * (2 if precision == "bfloat16" else 4),
    )
