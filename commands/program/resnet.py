"""The program of a ResNet: planned by this machine's costs."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from cambrian.commands.configuration import batch_sizes
from cambrian.commands.console import progress_bar
from cambrian.commands.model import Model
from cambrian.commands.program.facts import plan_facts, probe_pictures
from cambrian.commands.program.options import BuildOptions
from cambrian.sharding import Network, Plan, Program, mesh_shape
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

    shape, platform, notes = mesh_shape(mesh), mesh.local_devices[0].platform, []
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

    def plan(network: Network) -> tuple[Plan, models.Setting]:
        plans = models.Plans(
            network, shape, table, options.partition, options.launches_at_once, options.limit_bytes(mesh)
        )
        sizes = [options.batch_size] if options.batch_size else batch_sizes(shape, platform)
        seconds = round(options.calibrate_s) if calibrates else 0
        with progress_bar(seconds, "measuring this machine", unit="s") as show_progress:
            chosen = models.choose_setting(
                plans, precisions, sizes, mesh, options.calibrate_s, lambda done: show_progress(round(done))
            )
        notes.extend(chosen.notes)
        return chosen.plan, chosen.setting

    program = models.build_program(
        model.architecture,
        model.variables,
        plan,
        mesh,
        quantized=quantized,
        **pixels,
        metadata={
            "labels": list(model.config.labels),
            "preprocessing": model.config.preprocessing.to_json(),
            "weights": model.weights,
            "trained": model.trained,
        },
        compile_reference=compile_reference and not calibrates,
    )
    return dataclasses.replace(
        program,
        metadata={**program.metadata, **plan_facts(program, options.partition)},
        probe_samples=probe_pictures(model.config.preprocessing),
        notes=(*model.notes, *program.notes, *notes),
    )


def precisions_of(precision: str, platform: str) -> list[str]:
    """The precisions that a requested one may mean, the expected one first."""
    if precision != "auto":
        return [precision]
    return sorted(["float32", "bfloat16"], reverse=not computes_bfloat16(platform))
