"""Saving an executable, or a program, as an artefact."""

import dataclasses
import datetime
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cambrian.engine.artifact.fingerprint import fingerprint, versions
from cambrian.engine.artifact.layout import PARAMETERS, PORTABLE, PROBE, native_name
from cambrian.engine.artifact.manifest import MANIFEST, FileRecord, Manifest
from cambrian.engine.artifact.serialization import NotSerializable, to_native, to_portable
from cambrian.engine.artifact.signing import load_key
from cambrian.engine.artifact.tensor_file import write_tensors
from cambrian.engine.errors import ArtifactExists
from cambrian.engine.runtime.executable import Analysis, Executable
from cambrian.engine.runtime.parity import probe_inputs, reference_outputs
from cambrian.sharding import Program, UsageError, compile_apply, mesh_shape, named_arrays
from cambrian.sharding.host.files import new_directory, path_named, write_file

NO_NATIVE = "the artefact holds no native executable"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Everything of an artefact that is computed, ready to be written.

    Attributes:
      program: program that it was computed from.
      code: file name → content, of the portable and the native program.
      probe: inputs, and their float32 reference outputs, each an array or a pytree.
      analysis: memory and arithmetic of the executable; None where none was compiled.
      notes: parts that the artefact lacks.
    """

    program: Program
    code: dict[str, bytes]
    probe: tuple[Any, Any]
    analysis: Analysis | None
    notes: tuple[str, ...]


def save(executable: Executable, path: str | Path, signing_key: str | Path | None = None) -> None:
    """Saves an executable and all it needs as a new directory, which appears complete or not at all.

    Runs the program's reference once, for the probe. Where XLA can't serialize the machine code, the artefact holds the
    portable form only, and a note says so unless the program makes custom calls, which never have machine code.

    Args:
      executable: executable compiled from its program.
      path: directory to make.
      signing_key: path of the user's key file; None for the default one.

    Raises:
      UsageError: if the executable was itself loaded from an artefact, JAX can't export its program, or the key can't
        be used. Nothing was written then.
      ArtifactExists: if `path` exists.
      OSError: naming `path`, if it can't be written.
    """
    if executable.program is None:
        raise UsageError(f"expected an executable compiled from its program, got a {executable.kind} one")
    path = Path(path)
    _check_absent(path)
    load_key(signing_key)
    parts = compute_parts(executable.program, executable.compiled)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_artifact(parts, path, signing_key)


def compute_parts(program: Program, compiled: jax.stages.Compiled | None = None) -> Parts:
    """Exports and compiles a program, and computes its probe; writes nothing.

    Args:
      program: program to save.
      compiled: its `apply`; None to compile it here, unless it makes custom calls or its mesh runs over several
        processes: then each load compiles it.

    Raises:
      UsageError: if JAX can't export the program.
    """
    code, inputs, notes = {PORTABLE: to_portable(program)}, probe_inputs(program.input_spec, program.probe_samples), []
    # The reference takes several seconds and leaves a core idle for most of them.
    with ThreadPoolExecutor(1) as pool:
        reference = pool.submit(reference_outputs, program, inputs)
        if not program.custom_calls and not program.mesh.is_multi_process:  # which XLA can't serialize
            compiled = compiled or compile_apply(program)
            try:
                native = to_native(compiled)
                code[native_name(native)] = native
            except NotSerializable as error:
                notes.append(f"{NO_NATIVE}, XLA could not serialize it: {error}")
        analysis = None if compiled is None else Analysis.of(compiled)
        return Parts(program, code, (inputs, reference.result()), analysis, tuple(notes))


def write_artifact(parts: Parts, path: Path, signing_key: str | Path | None = None, cache_key: str = "") -> None:
    """Writes an artefact to a new directory, which appears complete or not at all.

    Args:
      parts: content of the artefact.
      path: directory to make, in one that exists.
      signing_key: path of the user's key file; None for the default one.
      cache_key: key under which a cache keeps the artefact.

    Raises:
      UsageError: if the key can't be used.
      ArtifactExists: if `path` exists.
      OSError: naming `path`, if it can't be written.
    """
    _check_absent(path)
    key, program = load_key(signing_key), parts.program
    params = [(spec.name, array) for spec, array in zip(program.param_specs, program.params, strict=True)]
    try:
        with path_named(path), new_directory(path) as directory:
            files = {PARAMETERS: _write_tensors(directory / PARAMETERS, params)}
            for name, data in parts.code.items():
                write_file(directory / name, data)
                files[name] = FileRecord.of(data)
            inputs, outputs = parts.probe
            probe = named_arrays("inputs", inputs) | named_arrays("outputs", outputs)
            files[PROBE] = _write_tensors(directory / PROBE, list(probe.items()))
            write_file(directory / MANIFEST, _manifest(parts, files, cache_key).signed(key))
    except FileExistsError:
        raise _exists(path) from None


def _manifest(parts: Parts, files: dict[str, FileRecord], cache_key: str) -> Manifest:
    program = parts.program
    return Manifest(
        name=program.name,
        cache_key=cache_key,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        mesh=mesh_shape(program.mesh),
        platform=program.mesh.devices.flat[0].platform,
        input_spec=program.input_spec,
        output_spec=program.output_spec,
        plan=program.plan.to_json() if program.plan else {},
        rules=program.rules,
        custom_calls=program.custom_calls,
        metadata=program.metadata,
        notes=(*program.notes, *parts.notes),
        versions=versions(),
        fingerprint=fingerprint(list(program.mesh.devices.flat)),
        analysis=parts.analysis,
        tolerance=program.tolerance,
        files=files,
        param_specs=program.param_specs,
    )


def _write_tensors(path: Path, tensors: Sequence[tuple[str, np.ndarray]]) -> FileRecord:
    digest = write_tensors(path, tensors)
    return FileRecord(digest, path.stat().st_size)


def _check_absent(path: Path) -> None:
    if path.exists():
        raise _exists(path)


def _exists(path: Path) -> ArtifactExists:
    return ArtifactExists(f"an artefact must be saved to a new directory, got {path}, which exists")
