"""From flags to a sweep."""

import dataclasses
import hashlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from engine.command_line import command_line
from engine.configuration import Configuration
from engine.flags import DECIDED_BY_ARTIFACT, SWEEP_FLAGS, read_configuration
from engine.inputs import open_source
from engine.prediction import Prediction
from engine.sweep.environment import environment
from engine.sweep.grid import Cell, Grid
from engine.sweep.objective import Objective
from engine.sweep.sweep import Sweep
from sharding import UsageError

Predict = Callable[[Configuration], Prediction | None]

_MODES = ("run", "compile")
# They change how a sweep is run, not what it is.
_NOT_OF_THE_COMMAND = ("output_dir", "fresh", "dry_run", "debug")


def sweep_of_flags(
    values: flags.FlagValues,
    axes: Mapping[str, Sequence[Any]],
    program: Sequence[str],
    predict: Predict,
    source: str,
) -> Sweep:
    """The sweep that flags ask for.

    A combination that makes no sense is refused with its reason and the others run; a value that makes no sense with
    any other is an error.

    Args:
      axes: the values of each flag that may vary.
      program: what runs one configuration, less its flags: interpreter and file.
      predict: gives what a configuration is expected to take, None where that isn't known.
      source: digest of the code that builds programs.

    Raises:
      UsageError: if a flag or the data makes no sense.
    """
    mode = values["mode"].value
    if mode not in _MODES:
        raise UsageError(f"a sweep needs mode {' or '.join(_MODES)}, got {mode!r}")
    grid = Grid.of(axes)
    artifact = values["artifact"].value
    if artifact and (decided := [flag for flag in grid.varied if flag in DECIDED_BY_ARTIFACT]):
        raise UsageError(
            f"an artifact decides its own {decided[0]}: give one --{decided[0]}, got {len(axes[decided[0]])}"
        )

    configurations, refused = _configurations(values, grid)
    num_images = _count_images(configurations, refused) if mode == "run" else {}
    without_sweep: dict[str, Any] = dict.fromkeys(SWEEP_FLAGS)
    if artifact:
        without_sweep |= dict.fromkeys(DECIDED_BY_ARTIFACT)

    def arguments(cell: Cell, **chosen: Any) -> list[str]:
        return command_line(values, cell.flags | without_sweep | chosen)

    def run_command(cell: Cell, num_images: int, output_dir: Path) -> list[str]:
        chosen = {"num_images": num_images} if num_images else {}
        return [*program, *arguments(cell, output_dir=str(output_dir), **chosen)]

    def build_command(cell: Cell) -> list[str]:
        return [*program, *arguments(cell, mode="compile", output_dir=None)]

    given: dict[str, Any] = {name: values[name].value for name in (*SWEEP_FLAGS, "seed")}
    typed = ["python", _as_typed(Path(program[-1]))]
    command = shlex.join([*typed, *command_line(values, dict.fromkeys(_NOT_OF_THE_COMMAND))])
    model = dataclasses.asdict(next(iter(configurations.values())).model)
    directory = hashlib.sha256(command.encode()).hexdigest()[:8]
    return Sweep(
        grid=grid,
        path=Path(values["output_dir"].value or f"runs/sweep-{directory}"),
        identity={"command": command, "model": _jsonable(model), "environment": environment(source)},
        run_command=run_command,
        build_command=None if artifact else build_command,
        answer=lambda cell: shlex.join([*typed, *arguments(cell, output_dir=None)]),
        refused=refused,
        predictions={cell: predict(configuration) for cell, configuration in configurations.items()},
        num_images=num_images,
        objective=Objective(given["objective"], given["max_latency_ms"], given["min_top1"]),
        search=given["search"],
        repeats=given["repeats"],
        seed=given["seed"],
        timeout_s=given["timeout_s"],
        fresh=given["fresh"],
    )


def _configurations(values: flags.FlagValues, grid: Grid) -> tuple[dict[Cell, Configuration], dict[Cell, str]]:
    configurations: dict[Cell, Configuration] = {}
    refused: dict[Cell, str] = {}
    errors: dict[tuple[str, Any], UsageError] = {}
    for cell in grid.cells:
        try:
            configurations[cell] = read_configuration(values, cell.flags)
        except UsageError as error:
            refused[cell] = str(error)
            for pair in cell.values:
                errors.setdefault(pair, error)
    sensible = {pair for cell in configurations for pair in cell.values}
    for pair, error in errors.items():
        if pair not in sensible:
            raise error
    return configurations, refused


def _count_images(configurations: dict[Cell, Configuration], refused: dict[Cell, str]) -> dict[Cell, int]:
    """How many images each cell has; moves cells that ask for more than there are to `refused`."""
    counts: dict[int, int | UsageError] = {}
    for configuration in configurations.values():
        if configuration.num_images not in counts:
            counts[configuration.num_images] = _count(configuration)
    if errors := [count for count in counts.values() if isinstance(count, UsageError)]:
        if len(errors) == len(counts):
            raise errors[0]
        for cell, configuration in list(configurations.items()):
            if isinstance(error := counts[configuration.num_images], UsageError):
                refused[cell] = str(error)
                del configurations[cell]
    return {
        cell: count
        for cell, configuration in configurations.items()
        if isinstance(count := counts[configuration.num_images], int)
    }


def _count(configuration: Configuration) -> int | UsageError:
    model = configuration.model
    try:
        source, _ = open_source(
            configuration.data,
            split=configuration.split,
            num_images=configuration.num_images,
            image_size=configuration.image_size or model.image_size,
            crop_fraction=model.crop_fraction,
            labels=(),
            seed=configuration.seed,
        )
    except UsageError as error:
        return error
    return len(source)


def _as_typed(program: Path) -> str:
    return program.name if program.resolve().parent == Path.cwd() else str(program)


def _jsonable(value: Any) -> Any:
    """`value` as JSON gives it back, tuples as lists, so that it can be compared with what was written."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    return [_jsonable(item) for item in value] if isinstance(value, (list, tuple)) else value
