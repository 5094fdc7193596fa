"""The program of a ResNet: planned by this machine's costs."""

import dataclasses
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh

from cambrian.commands.configuration import batch_sizes
from cambrian.commands.console import progress_bar
from cambrian.commands.model import Model
from cambrian.commands.program.facts import plan_facts, probe_pictures
from cambrian.engine.runtime.memory import device_memory_bytes
from cambrian.sharding import Network, Plan, Program, mesh_shape
from cambrian.sharding.host import computes_bfloat16

if TYPE_CHECKING:
    from cambrian.models import Calibration


def model_program(
    model: Model,
    mesh: Mesh,
    *,
    batch_size: int,
    precision: str,
    partition: str = "auto",
    launches_at_once: int = 1,
    memory_limit_bytes: int | None = None,
    calibrate_s: float = 0.0,
    compile_reference: bool = False,
    calibration: "Calibration | None" = None,
) -> Program:
    """Plans a model on a mesh by this machine's costs, and specialises it to the plan.

    Args:
      batch_size: global number of images of a launch, a multiple of the data axis; 0 for the one predicted to be best.
      precision: float32, bfloat16, int8, or auto for the one predicted to be faster.
      partition: as `cambrian.sharding.choose_plan` takes it.
      launches_at_once: number of launches that compute side by side on a single device.
      memory_limit_bytes: of a device; None for its memory.
      calibrate_s: seconds in which to measure what decides the plan, where no cost table of this machine is there.
      compile_reference: whether to compile the program's reference meanwhile, because it will be called; not while
        costs are measured.
      calibration: for int8.

    Raises:
      UsageError: if the mesh can't cut the model as asked.
      OutOfMemory: if no plan fits the devices.
    """
    from cambrian import models

    devices, shape = mesh.local_devices, mesh_shape(mesh)
    platform, notes = devices[0].platform, []
    table = models.current_cost_table(platform)
    precisions = precisions_of(precision, platform)
    calibrates = calibrate_s > 0 and platform == "cpu" and not table.is_complete(precisions)
    pixels: Any = {
        "image_size": model.image_size,
        "mean": model.config.preprocessing.mean,
        "std": model.config.preprocessing.std,
    }
    quantized = None
    if calibration is not None:
        quantized = models.quantize(model.architecture, model.variables, calibration, **pixels)

    def plan(network: Network) -> tuple[Plan, models.Setting]:
        limit_bytes = device_memory_bytes(devices) if memory_limit_bytes is None else memory_limit_bytes
        plans = models.Plans(network, shape, table, partition, launches_at_once, limit_bytes)
        sizes = [batch_size] if batch_size else batch_sizes(shape, platform)
        with progress_bar(round(calibrate_s) if calibrates else 0, "measuring this machine", unit="s") as show_progress:
            chosen = models.calibrated(
                plans,
                precisions,
                sizes,
                mesh,
                calibrate_s,
                lambda done: show_progress(round(done)),
            )
        notes.extend(chosen.notes)
        return chosen.plans.plan(chosen.setting), chosen.setting

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
        metadata={**program.metadata, **plan_facts(program, partition)},
        probe_samples=probe_pictures(model.config.preprocessing),
        notes=(*model.notes, *program.notes, *notes),
    )


def precisions_of(precision: str, platform: str) -> list[str]:
    """The precisions that a requested one may mean, the expected one first."""
    if precision != "auto":
        return [precision]
    return sorted(["float32", "bfloat16"], reverse=not computes_bfloat16(platform))
