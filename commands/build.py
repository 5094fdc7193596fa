"""From a configuration to a program: its model, weights and plan."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jax.sharding import Mesh

from engine.cache import source_digest
from engine.configuration import Configuration, ModelConfig
from engine.memory import memory_limit_bytes
from engine.weights_model import model_of_weights
from sharding import Program, UsageError, mesh_shape, own_table_path, planned_as

if TYPE_CHECKING:
    import models

_ROOT = Path(__file__).parent.parent
NO_WEIGHTS = "no trained weights: running on random ones; --weights PATH takes a checkpoint"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Model:
    """What a configuration names.

    Attributes:
      weights: where the variables come from, in words.
      trained: whether they are somebody's, not random.
    """

    config: ModelConfig
    architecture: "models.Architecture"
    variables: dict[str, np.ndarray]
    image_size: int
    weights: str
    trained: bool
    notes: tuple[str, ...]


def read_model(configuration: Configuration) -> Model:
    """Reads the configuration's weights, or draws random ones.

    Raises:
      UsageError: if the weights can't be read, or aren't those of a model that the user named.
    """
    import models  # only where something must be built: an offline run starts without them

    config, notes = configuration.model, ()
    architecture = models.Architecture.resnet(config.depth, config.stem, config.num_classes)
    trained, weights = configuration.weights not in ("auto", "random"), configuration.weights
    if trained:
        given = models.read_weights(weights)
        if configuration.explicit_config and given.architecture != architecture:
            raise UsageError(
                f"--config needs weights of {_describe(architecture)}, got {_describe(given.architecture)} in {weights}"
            )
        config = model_of_weights(configuration, given.told())
        architecture, variables, notes = given.architecture, given.variables, given.notes
    else:
        notes = (NO_WEIGHTS,) if weights == "auto" else ()
        weights = f"random, seed {configuration.seed}"
        variables = models.random_variables(architecture, configuration.seed)
    image_size = configuration.image_size or config.image_size
    return Model(config, architecture, variables, image_size, weights, trained, notes)


def build_program(configuration: Configuration, mesh: Mesh) -> Program:
    """The program of a configuration whose platform, precision and batch size are chosen, planned by the cost table.

    Raises:
      UsageError: as `read_model` and `models.make_plan`.
    """
    import models

    model = read_model(configuration)
    network, batch_size = models.network(model.architecture, model.image_size), configuration.batch_size
    planned_mesh, planned_batch = planned_as(configuration.mesh, batch_size, configuration.launches_at_once)
    table = models.current_cost_table(configuration.platform)
    plan = models.make_plan(
        network,
        planned_mesh,
        planned_batch,
        configuration.platform,
        configuration.precision,
        configuration.partition,
        memory_limit_bytes=memory_limit_bytes(configuration.device_memory_limit, list(mesh.devices.flat)),
        table=table,
    )
    costs = models.layer_costs(plan, network, planned_mesh, planned_batch, configuration.precision, table)
    program = models.build_program(
        model.architecture,
        model.variables,
        plan,
        mesh,
        image_size=model.image_size,
        batch_size=batch_size,
        precision=configuration.precision,
        mean=model.config.mean,
        std=model.config.std,
        metadata={
            "labels": list(model.config.labels),
            "crop_fraction": model.config.crop_fraction,
            "interpolation": model.config.interpolation,
            "partition": configuration.partition,
            "weights": model.weights,
            "trained": model.trained,
            "layer_costs": [dataclasses.asdict(cost) for cost in costs],
            "intra_sample_flops_fraction": plan.intra_sample_flops_fraction(network, mesh_shape(mesh)),
        },
    )
    return dataclasses.replace(program, notes=(*model.notes, *program.notes))


def code_digest(platform: str) -> str:
    """A digest of the code that `build_program` runs, and of the cost tables by which it plans."""
    parts = [_ROOT / part for part in ("commands", "configs", "models", "sharding")]
    own, shipped = own_table_path(platform), (_ROOT / "models" / "shipped_costs").glob("*.jsonl")
    return source_digest(*parts, *shipped, *([own] if own.exists() else []))


def _describe(architecture: "models.Architecture") -> str:
    return f"{architecture.name} with the {architecture.stem} stem and {architecture.num_classes} classes"
