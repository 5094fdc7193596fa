"""The program of a ResNet: planned by this machine's costs."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from cambrian.commands.configuration import batch_sizes
from cambrian.commands.console import progress_bar
from cambrian.commands.model import Model
from cambrian.commands.program.facts import of_classifier, with_plan_facts
from cambrian.commands.program.options import BuildOptions
from cambrian.sharding import Network, Program, mesh_shape
from cambrian.sharding.host import computes_bfloat16


def model_program(model: Model, mesh: Mesh, options: BuildOptions, *, compile_reference: bool = False) -> Program:
    """Plans a model on a mesh by this machine's costs, and specialises it to the plan.

    Args:
      compile_reference: whether to compile the program's reference meanwhile, because it will be called; not while
        costs are measured.

    Raises:
      UsageError: if the mesh can't cut the model as asked.
      OutOfMemory: if no plan fits the devices.
    """
    from cambrian import models

    shape, platform = mesh_shape(mesh), mesh.local_devices[0].platform
    table = models.current_cost_table(platform)
    precisions = precisions_of(options.precision, platform)
    calibrates = options.calibrate_s > 0 and platform == "cpu" and not table.is_complete(precisions)
    pixels: Any = {
        "image_size": model.image_size,
        "mean": model.config.preprocessing.mean,
        "std": model.config.preprocessing.std,
    }
    quantized = None
    if options.calibration is not None:
        quantized = models.quantize(model.architecture, model.variables, options.calibration, **pixels)

    def choose(network: Network) -> models.Chosen:
        plans = models.Plans(
            network, shape, table, options.partition, options.launches_at_once, options.limit_bytes(mesh)
        )
        sizes = [options.batch_size] if options.batch_size else batch_sizes(shape, platform)
        seconds = round(options.calibrate_s) if calibrates else 0
        with progress_bar(seconds, "measuring this machine", unit="s") as show_progress:
            return models.choose_setting(
                plans, precisions, sizes, mesh, options.calibrate_s, lambda done: show_progress(round(done))
            )

    program = models.build_program(
        model.architecture,
        model.variables,
        choose,
        mesh,
        quantized=quantized,
        **pixels,
        compile_reference=compile_reference and not calibrates,
    )
    program = with_plan_facts(program, options.partition)
    config = model.config
    program = of_classifier(program, config.preprocessing, config.labels, model.trained, weights=model.weights)
    return dataclasses.replace(program, notes=(*model.notes, *program.notes))


def precisions_of(precision: str, platform: str) -> list[str]:
    """The precisions that a requested one may mean, the expected one first."""
    if precision != "auto":
        return [precision]
    return sorted(["float32", "bfloat16"], reverse=not computes_bfloat16(platform))
