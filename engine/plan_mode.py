"""`--mode plan`: shows the plan of a configuration's executable, its predicted time beside the measured one."""

import statistics
import sys
from pathlib import Path

import numpy as np

from engine.awake import awake
from engine.configuration import Configuration
from engine.executable import Executable
from engine.launch import launches_computing_at_once
from engine.obtain import BuildProgram, SourceDigest, obtain
from engine.parity import probe_inputs
from engine.plan_view import draw_plan, print_plan
from engine.run import make_output_dir
from sharding import LayerCost, UsageError, time_launches


def show_plan(configuration: Configuration, build_program: BuildProgram, source_digest: SourceDigest) -> Path:
    """Obtains the executable, measures its launches, prints its plan as a table and draws it.

    Args:
      build_program, source_digest: see `engine.obtain`.

    Returns:
      The folder that plan.png and plan.svg were written to.

    Raises:
      UsageError: if the executable has no plan; or as `engine.obtain.obtain`.
    """
    executable = obtain(configuration, build_program, source_digest).executable
    for note in executable.notes:
        print(f"note: {note}", file=sys.stderr)
    costs = planned_costs(executable)
    if not costs:
        raise UsageError(f"mode plan needs the executable of a planned model, got {executable.name} without a plan")
    measured_ms = launch_milliseconds(executable, configuration.threads)
    model, data = executable.mesh.devices.shape
    title = (
        f"{executable.name}, mesh {model}x{data} on {executable.platform}, "
        f"batch {executable.batch_size}, {executable.metadata.get('precision')}"
    )
    output_dir = make_output_dir(configuration)
    print_plan(executable.plan, costs, title, measured_ms)
    draw_plan(executable.plan, costs, title, measured_ms, output_dir / "plan")
    return output_dir


def planned_costs(executable: Executable) -> list[LayerCost]:
    """What the planner predicted for each layer; empty for an executable without a plan."""
    return [LayerCost(**cost) for cost in executable.metadata.get("layer_costs", ())]


def launch_milliseconds(executable: Executable, threads: int) -> float:
    """The median time of a launch on images that are on the devices already.

    One at a time, but on a single CPU device, where so many host threads compute side by side.
    """
    inputs = executable.put(np.asarray(probe_inputs(executable.input_spec))).block_until_ready()
    executable.launch(inputs).block_until_ready()
    at_once = launches_computing_at_once(executable.mesh, threads)
    with awake(executable.platform):
        return statistics.median(time_launches(lambda: executable.launch(inputs), at_once, least=5, seconds=5.0))
