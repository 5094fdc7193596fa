"""`--mode plan`: shows the configuration's plan; `--tune` measures this machine's cost table first."""

import sys
from pathlib import Path

import tqdm

import models
from commands.build import build_program, code_digest, read_model
from engine.awake import awake
from engine.configuration import Configuration
from engine.memory import keep_freed_memory
from engine.obtain import devices_of, resolve
from engine.plan_mode import show_plan
from sharding import UsageError, machine_of, make_mesh, own_table_path


def plan_command(configuration: Configuration, tune: bool) -> Path:
    """Shows the plan by which the configuration's executable is built, and what it takes.

    Returns:
      The folder with the plan's picture.

    Raises:
      UsageError: as `build_program`; if the cost table can't be written; or if an artifact's plan should be tuned.
    """
    if configuration.artifact:
        if tune:
            raise UsageError(f"an artifact has its plan: leave --tune out, got {configuration.artifact}")
        return show_plan(configuration, build_program, code_digest)
    if tune:
        tune_table(configuration)
    devices, _ = devices_of(configuration)
    measured_on = models.current_cost_table(devices[0].platform).machine.get("device", "no machine")
    if measured_on != machine_of(devices[0].platform)["device"]:
        print(f"note: planned by costs measured on {measured_on}; --tune measures this machine's", file=sys.stderr)
    return show_plan(configuration, build_program, code_digest)


def tune_table(configuration: Configuration) -> None:
    """Measures what this machine's cost table lacks for planning the configuration; goes on where it stopped.

    Raises:
      UsageError: if the cost table can't be written.
    """
    keep_freed_memory()
    devices, _ = devices_of(configuration)
    configuration = resolve(configuration, devices)
    model = read_model(configuration)
    path = own_table_path(configuration.platform)
    print(f"measuring into the cost table {path}", file=sys.stderr, flush=True)
    try:
        with awake(configuration.platform):
            models.tune(
                models.read_table(path, configuration.platform),
                path,
                models.network(model.architecture, model.image_size),
                make_mesh(configuration.mesh, devices),
                configuration.batch_size,
                configuration.precision,
                launches_at_once=configuration.launches_at_once,
                progress=lambda parts: tqdm.tqdm(parts, desc="layers and transitions", unit=""),
            )
    except OSError as error:
        raise UsageError(f"the cost table must be writable, got {path}: {error.strerror}") from None
