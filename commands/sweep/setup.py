"""Makes a sweep from flags."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from cambrian.commands.configuration import Configuration, default_batch_size
from cambrian.commands.executables import weights_identity
from cambrian.commands.flags import DECIDED_BY_ARTIFACT, Flags, read_configuration
from cambrian.commands.images import ImageSource, choose_data, for_model, open_source
from cambrian.commands.images.folder import files_digest
from cambrian.commands.model import read_model
from cambrian.commands.predict import PredictedCosts, predict
from cambrian.commands.program.digests import build_digest
from cambrian.commands.run.classify import check_classifier
from cambrian.commands.sweep.command_lines import CommandLines
from cambrian.commands.sweep.grid import Cell, Grid
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.sweep import Sweep
from cambrian.commands.user_model import read_user_model
from cambrian.engine.artifact.fingerprint import versions
from cambrian.engine.artifact.layout import read_artifact
from cambrian.engine.hosts.share_artifact import content_digest
from cambrian.sharding import UsageError
from cambrian.sharding.host import acquire_devices, cpu_model, host_cores
from cambrian.sharding.host.control_groups import control_group_bytes

_MODES = ("run", "compile", "loadgen")
_MAX_CONFIGURATIONS = 10_000


def sweep_of_flags(flags: Flags, program: Sequence[str]) -> Sweep:
    """Makes the sweep that flags describe.

    An invalid combination is refused with its reason and the others run; a value that is invalid in every combination
    is an error.

    Args:
      program: interpreter and script that run one configuration, without flags.

    Raises:
      UsageError: if a flag or the data is invalid.
    """
    mode = flags["mode"]
    if mode not in _MODES:
        raise UsageError(f"mode must be {' or '.join(_MODES)} for a sweep, got {mode!r}")
    grid = Grid.of(flags.axes)
    count = math.prod(len(values) for _, values in grid.axes)
    if count > _MAX_CONFIGURATIONS:
        raise UsageError(f"a sweep must have at most {_MAX_CONFIGURATIONS} configurations, got {count}")
    artifact = flags["artifact"]
    if artifact and (decided := [flag for flag in grid.varied if flag in DECIDED_BY_ARTIFACT]):
        raise UsageError(
            f"an artifact decides its own {decided[0]}: give one --{decided[0]}, got {len(grid.values(decided[0]))}"
        )

    configurations, refused = _configurations(flags, grid)
    first = next(iter(configurations.values()))  # model, parameters and images are the same in all
    model, labels, num_logits = _model(first)
    contents = _contents_of_parameters(first)
    num_images = {}
    if mode != "compile":
        num_images = _count_images(configurations, refused, labels, num_logits)
        images = _open(dataclasses.replace(first, num_images=0), labels, num_logits)
        contents["content of images"] = ", ".join(filter(None, (images.description, files_digest(images)[:16])))
    predictions = _predictions(configurations, refused)
    if mode == "loadgen" and flags["search"] == "auto":
        raise UsageError("a test of LoadGen has no images to leave out: --search must be grid, got auto")
    commands = CommandLines(flags, program)
    directory = hashlib.sha256(os.fsencode(commands.sweep)).hexdigest()[:8]
    path = Path(flags["output_dir"] or f"runs/sweep-{directory}")
    if mode != "compile":
        first.check_output(path)
    return Sweep(
        grid=grid,
        path=path,
        identity={
            "command": commands.sweep,
            "model": _jsonable(model),
            "environment": _environment(build_digest("cpu")) | contents,
        },
        run_command=commands.run,
        build_command=None if artifact else lambda cell: commands.build(cell, configurations[cell].batch_size),
        resume=commands.resume(path),
        answer=commands.answer,
        refused=refused,
        predictions=predictions,
        num_images=num_images,
        objective=Objective(flags["objective"], flags["max_latency_ms"], flags["min_top1"]),
        search=flags["search"],
        repeats=flags["repeats"],
        seed=flags["seed"],
        timeout_s=flags["timeout_s"],
        fresh=flags["fresh"],
    )


def _environment(source: str) -> dict[str, str]:
    """Describes what results depend on besides the command; `source` is a digest of the code that builds programs."""
    return {
        "processor": cpu_model(),
        "cores": str(host_cores()),
        "memory": f"{min(psutil.virtual_memory().total, control_group_bytes() or math.inf) / 2**30:.1f} GiB",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        **versions(),
        "source": source[:16],
    }


def _configurations(flags: Flags, grid: Grid) -> tuple[dict[Cell, Configuration], dict[Cell, str]]:
    configurations: dict[Cell, Configuration] = {}
    errors: dict[Cell, UsageError] = {}
    for cell in grid.cells:
        try:
            configurations[cell] = read_configuration(flags, cell.flags)
        except UsageError as error:
            errors[cell] = error
    return configurations, _refused(errors, configurations)


def _predictions(
    configurations: dict[Cell, Configuration], refused: dict[Cell, str]
) -> dict[Cell, PredictedCosts | None]:
    """Predicts each cell's costs; moves cells whose mesh can't cut the model as they ask to `refused`."""
    predictions: dict[Cell, PredictedCosts | None] = {}
    errors: dict[Cell, UsageError] = {}
    for cell, configuration in configurations.items():
        try:
            predictions[cell] = predict(configuration)
        except UsageError as error:
            errors[cell] = error
    refused |= _refused(errors, predictions)
    for cell in errors:
        del configurations[cell]
    return predictions


def _refused(errors: Mapping[Cell, UsageError], sensible: Iterable[Cell]) -> dict[Cell, str]:
    """Returns cell → reason; raises the first error of a value that no sensible cell has."""
    values = {pair for cell in sensible for pair in cell.values}
    for cell, error in errors.items():
        if not values.issuperset(cell.values):
            raise error
    return {cell: str(error) for cell, error in errors.items()}


def _model(configuration: Configuration) -> tuple[dict[str, Any], tuple[str, ...], int]:
    """Returns what identifies the model in the sweep, its labels, and the number of its logits.

    Reads the weights, artefact or module that the user brings.
    """
    if configuration.user_model:
        (device,), _ = acquire_devices(1, "cpu")  # accelerators are left to the trials
        batch_size = configuration.batch_size or default_batch_size(configuration.mesh, "cpu")
        samples = max(batch_size // configuration.mesh.num_devices, 1)
        user_model = read_user_model(configuration.user_model, configuration.weights, device, samples)
        return user_model.identity(), user_model.classifier.labels, user_model.stock.output_spec.shape[1]
    model = configuration.model
    identity = dataclasses.asdict(model)
    if configuration.artifact:
        manifest, _ = read_artifact(Path(configuration.artifact), None)
        check_classifier(manifest)
        return dict(manifest.metadata), tuple(manifest.metadata["labels"]), manifest.output_spec.shape[-1]
    if configuration.weights not in ("auto", "random"):
        model = read_model(configuration).config
    return identity, model.labels, model.num_classes


def _contents_of_parameters(configuration: Configuration) -> dict[str, str]:
    """Identifies the artefact or the weights; a model of the user's identifies its parameters itself."""
    if configuration.artifact:
        return {"content of artifact": content_digest(Path(configuration.artifact))}
    return {} if configuration.user_model else {"content of weights": weights_identity(configuration)}


def _count_images(
    configurations: dict[Cell, Configuration], refused: dict[Cell, str], labels: tuple[str, ...], num_logits: int
) -> dict[Cell, int]:
    """Counts each cell's images; moves cells that request more than there are to `refused`."""
    counts: dict[int, int | UsageError] = {}
    for configuration in configurations.values():
        if configuration.num_images not in counts:
            counts[configuration.num_images] = _count(configuration, labels, num_logits)
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


def _count(configuration: Configuration, labels: tuple[str, ...], num_logits: int) -> int | UsageError:
    try:
        source = _open(configuration, labels, num_logits)
        for_model(source, configuration.model.preprocessing, labels, num_logits)
    except UsageError as error:
        return error
    return len(source)


def _open(configuration: Configuration, labels: tuple[str, ...], num_logits: int) -> ImageSource:
    data = configuration.data
    if data == "auto":
        data, _ = choose_data(labels, num_logits)
    num_images, seed = configuration.num_images, configuration.seed
    source, _ = open_source(data, split=configuration.split, num_images=num_images, seed=seed)
    return source


def _jsonable(value: Any) -> Any:
    """Returns `value` as JSON restores it, with lists for tuples, for comparison with a written one."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    return [_jsonable(item) for item in value] if isinstance(value, (list, tuple)) else value
