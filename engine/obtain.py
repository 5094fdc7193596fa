"""The executable of a configuration: received, from the cache of artefacts, or compiled here."""

import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from engine.artifact import load
from engine.cache import artifact_key, default_artifact_dir, load_or_build
from engine.compile import compile_program
from engine.configuration import Configuration, default_batch_size, parse_bytes
from engine.executable import Executable
from engine.manifest import canonical_json
from engine.parity import probe_inputs, reference_outputs, run_probe
from sharding import Program, UsageError, acquire_devices, computes_bfloat16, make_mesh

BuildProgram = Callable[[Configuration, Mesh], Program]
SourceDigest = Callable[[str], str]


@dataclasses.dataclass(frozen=True, slots=True)
class Obtained:
    """An executable, how long building and loading it took, and the artefact's directory if there is one."""

    executable: Executable
    build_ms: float | None
    load_ms: float
    path: Path | None


def obtain(configuration: Configuration, build_program: BuildProgram, source_digest: SourceDigest) -> Obtained:
    """Makes the configuration's executable ready to launch.

    Offline, it is always loaded from an artefact, which is built first if need be, and its probe is compared with the
    reference. Online, that is left to `check_parity`, because the reference takes longer than the start.

    Args:
      build_program: makes the program of a configuration in which platform, precision and batch size are chosen; it
        chooses the image size, where that is 0, by the model and its weights.
      source_digest: platform → digest of the code and the data that `build_program` uses there.

    Raises:
      UsageError, DamagedArtifact, ParityError: as `engine.artifact.load`.
    """
    start = time.perf_counter()
    if configuration.artifact:
        path = Path(configuration.artifact)
        executable = load(path, signing_key=_key_path(configuration))
        return Obtained(executable, None, _milliseconds_since(start), path)

    devices, notes = devices_of(configuration)
    configuration = resolve(configuration, devices)
    mesh = make_mesh(configuration.mesh, devices)
    if configuration.execution == "online":
        executable, path = compile_program(build_program(configuration, mesh)), None
        executable.warm_up()
        build_ms = _milliseconds_since(start)
        load_ms = 0.0
    else:
        directory = Path(configuration.artifact_dir) if configuration.artifact_dir else default_artifact_dir()
        key = artifact_key(_facts(configuration, source_digest(configuration.platform)))
        path = directory / key

        def build() -> Program:
            print("building the executable; later runs load it", file=sys.stderr, flush=True)
            return build_program(configuration, mesh)

        executable, build_ms = load_or_build(
            directory,
            key,
            build,
            devices=list(mesh.devices.flat),
            signing_key=_key_path(configuration),
        )
        load_ms = _milliseconds_since(start) - (build_ms or 0.0)
    executable = dataclasses.replace(executable, notes=(*notes, *executable.notes))
    return Obtained(executable, build_ms, load_ms, path)


def devices_of(configuration: Configuration) -> tuple[list[jax.Device], list[str]]:
    """The devices of a configuration's mesh, and notes, as `sharding.acquire_devices`, which it calls."""
    return acquire_devices(configuration.mesh.num_devices, configuration.platform, configuration.launches_at_once)


def check_parity(executable: Executable) -> Executable:
    """Compares an executable compiled in this process with its program's unsharded float32 reference.

    Raises:
      ParityError: if the relative error is above the program's tolerance.
    """
    program = executable.program
    assert program is not None
    inputs = probe_inputs(executable.input_spec)
    parity = run_probe(executable, inputs, reference_outputs(program, inputs), program.tolerance)
    return dataclasses.replace(executable, parity=parity)


def resolve(configuration: Configuration, devices: list[jax.Device]) -> Configuration:
    """The configuration with what it leaves open chosen: platform, precision, batch size."""
    platform = devices[0].platform
    precision = configuration.precision
    if precision == "auto":
        precision = "bfloat16" if computes_bfloat16(platform) else "float32"
    return dataclasses.replace(
        configuration,
        platform=platform,
        precision=precision,
        batch_size=configuration.batch_size or default_batch_size(configuration.mesh, platform),
    )


def _facts(configuration: Configuration, source: str) -> dict[str, object]:
    """All that the program depends on: not execution, data or number of images."""
    # Weights from a file may turn to another model than the default one, with an image size of its own.
    own_model = configuration.weights in ("auto", "random") or configuration.explicit_config
    return {
        "own_model": own_model,
        "model": dataclasses.asdict(configuration.model),
        "weights": _weights_identity(configuration),
        "mesh": str(configuration.mesh),
        "partition": configuration.partition,
        "precision": configuration.precision,
        "batch_size": configuration.batch_size,
        "image_size": configuration.image_size or (configuration.model.image_size if own_model else 0),
        "platform": configuration.platform,
        "launches_at_once": configuration.launches_at_once,
        "device_memory_limit": configuration.device_memory_limit and parse_bytes(configuration.device_memory_limit),
        "source": source,
    }


def _weights_identity(configuration: Configuration) -> str:
    if configuration.weights in ("auto", "random"):
        return f"{configuration.weights}, seed {configuration.seed}"
    path = Path(configuration.weights)
    try:
        if not path.is_dir():
            return _file_digest(path)
        # Of a folder every file counts, whichever of them the reader of its format takes; hidden ones are nobody's.
        files = {
            file.relative_to(path).as_posix(): _file_digest(file)
            for file in path.rglob("*")
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
        }
        return hashlib.sha256(canonical_json(files)).hexdigest()
    except OSError as error:
        raise UsageError(
            f"weights must be auto, random or a path that can be read, got {configuration.weights}: {error.strerror}"
        ) from None


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key_path(configuration: Configuration) -> Path | None:
    return Path(configuration.signing_key) if configuration.signing_key else None


def _milliseconds_since(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)
