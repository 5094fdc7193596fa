"""The executable of a configuration: received, from the cache of artefacts, or compiled in this process."""

import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from cambrian.commands.calibration import calibration_identity
from cambrian.commands.configuration import Configuration, default_batch_size
from cambrian.commands.model import read_model, weights_path
from cambrian.engine.artifact.cache import artifact_key, default_artifact_dir, load_or_build
from cambrian.engine.artifact.fingerprint import fingerprint
from cambrian.engine.artifact.load import load
from cambrian.engine.artifact.manifest import canonical_json
from cambrian.engine.errors import ParityError
from cambrian.engine.runtime.compile import compile_program
from cambrian.engine.runtime.executable import Executable
from cambrian.engine.runtime.parity import probe_inputs, reference_outputs, run_probe
from cambrian.sharding import Program, UsageError, make_mesh
from cambrian.sharding.host import acquire_devices, computes_bfloat16, default_threads, host_cores
from cambrian.sharding.host.control_groups import control_group_bytes

if TYPE_CHECKING:
    from cambrian.commands.user_model import UserModel


SLOW_MODEL_MS = 3000.0  # that a user's function may take without a note
# Of the fingerprint, what a plan was measured by and custom calls are bound to.
_OF_THE_MACHINE = ("jax", "jaxlib", "device kind", "CPU model", "CPU features")


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """An executable, how long building and loading took, and the artefact's directory if there is one.

    Attributes:
      build_ms: None where nothing was built.
    """

    executable: Executable
    build_ms: float | None
    load_ms: float
    path: Path | None


def make_executable(configuration: Configuration, defer_probe: bool = False, may_build: bool = True) -> Made:
    """Makes the configuration's executable ready to launch.

    An offline executable is always loaded from an artefact, which is built first if need be. Its probe is compared with
    the reference, or with `defer_probe` the first launch may do that (see `load`). For an online one `check_parity`
    does that later, because the reference takes longer than the start. Where a precision that was left open fails the
    probe, float32 is used, with a note.

    Args:
      may_build: whether to build an offline executable, rather than to raise UsageError, where there is no artefact.

    Raises:
      UsageError, DamagedArtifact, ParityError: as `cambrian.engine.load`.
    """
    try:
        return _make(configuration, defer_probe, may_build)
    except ParityError as error:
        if configuration.artifact or configuration.user_model or configuration.precision != "auto":
            raise
        made = _make(dataclasses.replace(configuration, precision="float32"), defer_probe, may_build)
        notes = (f"precision float32 instead of a faster one: {error}", *made.executable.notes)
        return dataclasses.replace(made, executable=dataclasses.replace(made.executable, notes=notes))


def _make(configuration: Configuration, defer_probe: bool, may_build: bool) -> Made:
    start = time.perf_counter()
    if configuration.artifact:
        path = Path(configuration.artifact)
        executable = load(path, signing_key=key_path(configuration), defer_probe=defer_probe)
        return Made(executable, None, milliseconds_since(start), path)

    # A received artefact runs without models.
    from cambrian.commands.program.build import build_program
    from cambrian.commands.user_model import read_user_model

    devices, notes = devices_of(configuration)
    configuration = dataclasses.replace(configuration, platform=devices[0].platform)
    mesh = make_mesh(configuration.mesh, devices)
    user_model, is_slow = None, False
    if configuration.user_model:
        configuration = resolve(configuration)
        samples, began = max(configuration.batch_size // mesh.size, 1), time.perf_counter()
        user_model = read_user_model(configuration.user_model, configuration.weights, devices[0], samples)
        is_slow = milliseconds_since(began) > SLOW_MODEL_MS
    if configuration.execution == "online":
        program = build_program(configuration, mesh, user_model or read_model(configuration))
        executable, path = compile_program(program), None
        executable.warm_up()
        build_ms = milliseconds_since(start)
        load_ms = 0.0
    else:
        directory, key, build = cache_entry(configuration, mesh, user_model, may_build)
        path = directory / key
        if is_slow:
            notes = [
                *notes,
                f"each start makes the model by {configuration.user_model}: --artifact {path} starts sooner",
            ]
        executable, build_ms = load_or_build(
            directory,
            key,
            build,
            devices=devices,
            signing_key=key_path(configuration),
            defer_probe=defer_probe,
        )
        load_ms = milliseconds_since(start) - (build_ms or 0.0)
        if named := configuration.named_weights:  # the same weights may have had another path when it was built
            executable = dataclasses.replace(executable, metadata=executable.metadata | {"weights": named})
    executable = dataclasses.replace(executable, notes=(*notes, *executable.notes))
    return Made(executable, build_ms, load_ms, path)


def cache_entry(
    configuration: Configuration, mesh: Mesh, user_model: "UserModel | None" = None, may_build: bool = True
) -> tuple[Path, str, Callable[[], Program]]:
    """The cache of artefacts, the name there of a configuration whose platform is known, and what builds its program.

    Raises:
      UsageError: if the weights can't be read.
    """
    from cambrian.commands.program.build import build_program, measuring_s
    from cambrian.commands.program.digests import build_digest

    directory = Path(configuration.artifact_dir) if configuration.artifact_dir else default_artifact_dir()
    identity = _resnet_identity(configuration) if user_model is None else user_model.identity()
    identity["calibration"] = calibration_identity(configuration)
    source = build_digest(configuration.platform)
    here = fingerprint(list(mesh.devices.flat))
    facts = _facts(configuration, identity, source, measuring_s(configuration))
    key = artifact_key(facts | {"machine": {name: here.get(name) for name in _OF_THE_MACHINE}})

    def build() -> Program:
        if not may_build:
            raise UsageError(f"expected a built artefact, got none at {directory / key}")
        model = user_model or read_model(configuration)
        print("building the executable; later runs skip this", file=sys.stderr, flush=True)
        program = build_program(configuration, mesh, model)
        if program.custom_calls:
            print("its oneDNN layers are compiled again at each start: XLA can't save them", file=sys.stderr)
        return program

    return directory, key, build


def devices_of(configuration: Configuration) -> tuple[list[jax.Device], list[str]]:
    """The devices of a configuration's mesh, and notes; starts JAX's backend, as `acquire_devices`."""
    return acquire_devices(configuration.mesh.num_devices, configuration.platform, configuration.launches_at_once)


def check_parity(executable: Executable) -> Executable:
    """Compares an executable compiled in this process with its program's unsharded float32 reference.

    Raises:
      ParityError: if the relative error is above the program's tolerance.
    """
    program = executable.program
    assert program is not None
    inputs = probe_inputs(executable.input_spec, program.probe_samples)
    parity = run_probe(executable, inputs, reference_outputs(program, inputs), program.tolerance)
    return dataclasses.replace(executable, parity=parity)


def resolve(configuration: Configuration) -> Configuration:
    """The configuration on a known platform with precision and batch size chosen, without measuring any."""
    precision, platform = configuration.precision, configuration.platform
    if precision == "auto":
        # A classifier of the user's has a precision of its own.
        precision = "bfloat16" if computes_bfloat16(platform) and not configuration.user_model else "float32"
    return dataclasses.replace(
        configuration,
        precision=precision,
        batch_size=configuration.batch_size or default_batch_size(configuration.mesh, platform),
    )


def _facts(
    configuration: Configuration, model: Mapping[str, Any], source: str, calibrate_s: float | None
) -> dict[str, Any]:
    """All that the program depends on: not execution, data or number of images."""
    return {
        "model": model,
        "mesh": str(configuration.mesh),
        "partition": configuration.partition,
        "precision": configuration.precision,
        "batch_size": configuration.batch_size,
        "platform": configuration.platform,
        "launches_at_once": configuration.launches_at_once,
        "processes": configuration.num_processes,
        "cores": [host_cores(), default_threads()] if configuration.platform == "cpu" else None,
        "device_memory_limit": configuration.device_memory_limit_bytes or control_group_bytes(),
        "source": source,
        "calibrate_s": calibrate_s,
    }


def _resnet_identity(configuration: Configuration) -> dict[str, Any]:
    # Weights from a file may turn to another model than the default one, with an image size of its own.
    own_model = configuration.weights in ("auto", "random") or configuration.explicit_config
    return {
        "own_model": own_model,
        "config": dataclasses.asdict(configuration.model),
        "weights": weights_identity(configuration),
        "image_size": configuration.image_size,
        "resize": configuration.resize,
    }


def weights_identity(configuration: Configuration) -> str:
    """What identifies the weights in the artefact key: the seed of random ones, else a digest of what is read.

    Raises:
      UsageError: if they can't be read.
    """
    path = weights_path(configuration)
    if path is None:
        return f"{configuration.weights}, seed {configuration.seed}"
    try:
        if path.is_dir():
            # Every file of a folder counts, whichever of them the reader of its format takes, but for hidden ones.
            files = [
                file
                for file in path.rglob("*")
                if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
            ]
            folder = path
        else:
            # A file's name and the configuration beside it decide how it is read.
            beside = (path.parent / name for name in ("config.json", "preprocessor_config.json"))
            files = [path, *(file for file in beside if file.is_file())]
            folder = path.parent
        digests = {file.relative_to(folder).as_posix(): _file_digest(file) for file in files}
    except OSError as error:
        raise UsageError(
            f"weights must be auto, random or a path that can be read, got {configuration.weights}: {error.strerror}"
        ) from None
    shipped = "shipped, " if configuration.weights == "auto" else ""
    return shipped + hashlib.sha256(canonical_json(digests)).hexdigest()


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_path(configuration: Configuration) -> Path | None:
    """The file of the user's key; None for the default one."""
    return Path(configuration.signing_key) if configuration.signing_key else None


def milliseconds_since(start: float) -> float:
    """The time since `start`, seconds of `time.perf_counter`."""
    return 1e3 * (time.perf_counter() - start)
