"""Saving an executable, or a program, as an artefact."""

import datetime
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from cambrian.engine.artifact.fingerprint import fingerprint
from cambrian.engine.artifact.layout import PARAMETERS, PORTABLE, PROBE, native_name
from cambrian.engine.artifact.manifest import MANIFEST, FileRecord, Manifest
from cambrian.engine.artifact.serialization import NotSerializable, to_native, to_portable
from cambrian.engine.artifact.signing import load_key
from cambrian.engine.artifact.tensor_file import write_tensors
from cambrian.engine.artifact.versions import versions
from cambrian.engine.errors import ArtifactExists
from cambrian.engine.files import sync_directory, temporary_sibling, write_file
from cambrian.engine.runtime.compile import compile_apply
from cambrian.engine.runtime.executable import Analysis, Executable
from cambrian.engine.runtime.parity import probe_inputs, reference_outputs
from cambrian.sharding import Program, UsageError, mesh_shape

NO_NATIVE = "the artefact holds no native executable"


def save(executable: Executable, path: str | Path, signing_key: str | Path | None = None) -> None:
    """Saves an executable and all it needs as a new directory, which appears complete or not at all.

    Runs the program's reference once, for the probe. Where XLA can't serialize the machine code, the artefact holds the
    portable form only, and a note says so.

    Args:
      signing_key: the user's key file; None for the default one.

    Raises:
      UsageError: if the executable was itself loaded from an artefact, or the key can't be used.
      ArtifactExists: if `path` is there already.
      OSError: if it can't be written.
    """
    if executable.program is None:
        raise UsageError(f"only an executable compiled from its program can be saved, got a {executable.kind} one")
    save_program(executable.program, path, signing_key, compiled=executable.compiled)


def save_program(
    program: Program,
    path: str | Path,
    signing_key: str | Path | None = None,
    *,
    compiled: jax.stages.Compiled | None = None,
    cache_key: str = "",
) -> None:
    """Saves a program as `save` does an executable.

    Args:
      compiled: its `apply`; None to compile it here, unless it has custom calls, which each load compiles.
      cache_key: the key under which a cache keeps the artefact.

    Raises:
      UsageError, ArtifactExists, OSError: as `save`.
    """
    path = Path(path)
    if path.exists():
        raise ArtifactExists(f"an artefact is saved to a new directory, got {path}, which exists")
    key = load_key(signing_key)
    path.parent.mkdir(parents=True, exist_ok=True)
    directory = temporary_sibling(path)
    try:
        directory.mkdir()
        files, analysis, notes = _write_parts(program, compiled, directory)
        manifest = Manifest(
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
            notes=(*program.notes, *notes),
            versions=versions(),
            fingerprint=fingerprint(list(program.mesh.devices.flat)),
            analysis=analysis,
            tolerance=program.tolerance,
            files=files,
            param_specs=program.param_specs,
        )
        write_file(directory / MANIFEST, manifest.signed(key))
        sync_directory(directory)
        try:
            os.rename(directory, path)
        except OSError:
            if path.exists():
                raise ArtifactExists(f"an artefact is saved to a new directory, got {path}, which exists") from None
            raise
        sync_directory(path.parent)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _write_parts(
    program: Program, compiled: jax.stages.Compiled | None, directory: Path
) -> tuple[dict[str, FileRecord], Analysis | None, list[str]]:
    inputs, notes = probe_inputs(program.input_spec), []
    # The reference takes several seconds and leaves a core idle for most of them.
    with ThreadPoolExecutor(1) as pool:
        reference = pool.submit(reference_outputs, program, inputs)
        params = [(spec.name, array) for spec, array in zip(program.param_specs, program.params, strict=True)]
        files = {PARAMETERS: _write_tensors(directory / PARAMETERS, params)}
        parts = {PORTABLE: to_portable(program)}
        if program.custom_calls:
            calls = ", ".join(program.custom_calls)
            notes.append(f"{NO_NATIVE}, as XLA can't serialize {calls}: each start compiles the portable program")
        else:
            compiled = compiled or compile_apply(program)
            try:
                native = to_native(compiled)
                parts[native_name(native)] = native
            except NotSerializable as error:
                notes.append(f"{NO_NATIVE}, XLA could not serialize it: {error}")
        for name, data in parts.items():
            write_file(directory / name, data)
            files[name] = FileRecord.of(data)
        files[PROBE] = _write_tensors(directory / PROBE, [("inputs", inputs), ("outputs", reference.result())])
    return files, None if compiled is None else Analysis.of(compiled), notes


def _write_tensors(path: Path, tensors: Sequence[tuple[str, np.ndarray]]) -> FileRecord:
    digest = write_tensors(path, tensors)
    return FileRecord(digest, path.stat().st_size)
