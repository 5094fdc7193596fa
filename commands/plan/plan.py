"""`--mode plan`: shows the configuration's plan with predicted and measured times."""

import dataclasses
import json
import statistics
from pathlib import Path

import jax

from cambrian.commands.configuration import Configuration
from cambrian.commands.console import print_note, shown_ms
from cambrian.commands.executables import make_executable
from cambrian.commands.output import output_folder
from cambrian.commands.plan.tune import tune_table
from cambrian.commands.plan.view import draw_plan, print_plan
from cambrian.engine.artifact.json_form import check_form
from cambrian.engine.artifact.manifest import MANIFEST
from cambrian.engine.errors import damage_named
from cambrian.engine.runtime.executable import Executable
from cambrian.engine.runtime.launch import launches_computing_at_once
from cambrian.engine.runtime.parity import probe_inputs
from cambrian.sharding import LayerCost, LayerPlan, Partition, UsageError, time_launches
from cambrian.sharding.host import low_cpu_latency

# JSON values of a layer's plan and of its cost.
_COST_FORMS = {field.name: field.type for field in dataclasses.fields(LayerCost)}
_LAYER_FORMS = {field.name: str if field.type is Partition else field.type for field in dataclasses.fields(LayerPlan)}


def plan_command(configuration: Configuration, tune: bool) -> None:
    """Makes the executable, times its launches, and prints and draws its plan.

    Raises:
      UsageError: as `make_executable`; if the cost table can't be written, or --tune is given with an artifact.
      DamagedArtifact: if what an artifact states of its plan can't be shown.
    """
    if configuration.artifact and tune:
        raise UsageError(f"an artifact has its plan: leave --tune out, got {configuration.artifact}")
    with output_folder(configuration) as output_dir:
        if tune:
            tune_table(configuration)
        executable = make_executable(configuration).executable
        for note in executable.notes:
            print_note(note)
        if configuration.artifact:
            _check_plan(executable, Path(configuration.artifact) / MANIFEST)
        costs = [LayerCost(**cost) for cost in executable.metadata.get("layer_costs", ())]
        measured_ms = launch_milliseconds(executable, configuration.threads)
        model, data = executable.mesh.devices.shape
        title = (
            f"{executable.name}, mesh {model}x{data} on {executable.platform}, "
            f"batch {executable.batch_size}, {executable.metadata.get('precision')}"
        )
        if not costs:  # a user's function, which a note says is computed as JAX compiles it
            print(f"{title}: no plan; a launch: measured {shown_ms(measured_ms)} ms")
            return
        print_plan(executable.plan, costs, title, measured_ms)
        draw_plan(executable.plan, costs, title, measured_ms, output_dir / "plan")
        print(f"picture of the plan in {output_dir}")


def _check_plan(executable: Executable, manifest: Path) -> None:
    """Raises DamagedArtifact unless an artefact, which may be anyone's, states a plan and the costs of its layers."""
    with damage_named(manifest, "a manifest with a plan and the costs of its layers"):
        drawn = executable.name, executable.plan, executable.metadata.get("precision")
        json.dumps(drawn, ensure_ascii=False).encode()  # no half of a surrogate pair, which Matplotlib refuses
        for layer in executable.plan.values():
            check_form(layer, _LAYER_FORMS)
            Partition(layer["partition"])
        for cost in executable.metadata.get("layer_costs", ()):
            check_form(cost, _COST_FORMS)
            executable.plan[cost["name"]]


def launch_milliseconds(executable: Executable, threads: int) -> float:
    """Returns the median time of a launch on images that are already on the devices.

    Launches run one at a time, except on a single CPU device, where those of `threads` host threads run concurrently.
    """
    inputs = jax.block_until_ready(executable.put(probe_inputs(executable.input_spec)))
    jax.block_until_ready(executable.launch(inputs))
    at_once = launches_computing_at_once(executable.mesh, threads)
    with low_cpu_latency(executable.platform):
        return statistics.median(time_launches(lambda: executable.launch(inputs), at_once, least=5, seconds=5.0))
