"""Saving an executable as an artefact, and loading it without its model's code or weights."""

import dataclasses
import datetime
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from engine.artifact_files import (
    PARAMETERS,
    PORTABLE,
    PROBE,
    find_native,
    load_params,
    mesh_devices,
    native_name,
    read_artifact,
    read_verified,
    rebuild_mesh,
)
from engine.compile import compile_apply, compile_exported
from engine.errors import ArtifactExists, DamagedArtifact
from engine.executable import Analysis, Executable
from engine.files import replace_file, sync_directory, temporary_sibling, write_file
from engine.fingerprint import Fingerprint, difference, fingerprint
from engine.manifest import MANIFEST, FileRecord, Manifest
from engine.parity import probe_inputs, reference_outputs, run_probe
from engine.serialization import (
    NotSerializable,
    from_native,
    from_portable,
    from_untrusted_portable,
    to_native,
    to_portable,
)
from engine.signing import load_key, read_key
from engine.tensor_file import map_tensors, write_tensors
from engine.versions import versions
from sharding import Program, UsageError, mesh_shape

_NO_NATIVE = "the artefact holds no native executable"
# What custom calls, and the order of weights that they want, depend on.
_CUSTOM_CALLS_NEED = ("jaxlib", "CPU model", "CPU features", "CPU threads")


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
            platform=mesh_devices(program.mesh)[0].platform,
            input_spec=program.input_spec,
            output_spec=program.output_spec,
            plan=program.plan.to_json() if program.plan else {},
            rules=program.rules,
            custom_calls=program.custom_calls,
            metadata=program.metadata,
            notes=(*program.notes, *notes),
            versions=versions(),
            fingerprint=fingerprint(mesh_devices(program.mesh)),
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
            notes.append(f"{_NO_NATIVE}, as XLA can't serialize {calls}: each start compiles the portable program")
        else:
            compiled = compiled or compile_apply(program)
            try:
                native = to_native(compiled)
                parts[native_name(native)] = native
            except NotSerializable as error:
                notes.append(f"{_NO_NATIVE}, XLA could not serialize it: {error}")
        for name, data in parts.items():
            write_file(directory / name, data)
            files[name] = FileRecord.of(data)
        files[PROBE] = _write_tensors(directory / PROBE, [("inputs", inputs), ("outputs", reference.result())])
    return files, None if compiled is None else Analysis.of(compiled), notes


def _write_tensors(path: Path, tensors: Sequence[tuple[str, np.ndarray]]) -> FileRecord:
    digest = write_tensors(path, tensors)
    return FileRecord(digest, path.stat().st_size)


def load(
    path: str | Path,
    *,
    devices: Sequence[jax.Device] | None = None,
    signing_key: str | Path | None = None,
    refresh: bool = False,
    cache_key: str | None = None,
) -> Executable:
    """Loads an artefact, runs its probe and compares.

    The machine code is used if the manifest is signed with this user's key and was built where the fingerprint is
    equal: nothing is traced or compiled then. Otherwise, and where XLA refuses the machine code, the portable program
    is compiled, and a note says why; one that is not signed with this user's key may hold no custom calls.

    Args:
      devices: where to run, in mesh order; None for those of the artefact's platform.
      signing_key: the user's key file; None for the default one. None is made.
      refresh: where this user's machine code can't be used, replace it by that compiled now.
      cache_key: what the artefact must have been saved under; None for anything.

    Raises:
      DamagedArtifact: naming the file that is missing, cut short, altered, of another key, or not to be trusted.
      UsageError: if there is no such directory or the devices don't suffice.
      ParityError: if the probe's outputs are too far from the reference.
    """
    path, key = Path(path), read_key(signing_key)
    manifest, is_signed = read_artifact(path, key)
    if cache_key not in (None, manifest.cache_key):
        raise DamagedArtifact(f"{path / MANIFEST} must be of the cache key {cache_key}, got {manifest.cache_key!r}")
    mesh, notes = rebuild_mesh(manifest, devices)
    notes = [*manifest.notes, *notes]
    native_file = find_native(manifest)
    native = read_verified(path, native_file, manifest) if native_file else None
    portable = read_verified(path, PORTABLE, manifest)
    probe = map_tensors(path / PROBE, manifest.files[PROBE].sha256)

    here = fingerprint(mesh_devices(mesh))
    differs = difference(manifest.fingerprint, here)
    _check_custom_calls(manifest, here, path)
    if native is None:
        obstacle = _NO_NATIVE
    elif not is_signed:
        obstacle = "the artefact is not signed with this user's key"
    else:
        obstacle = f"artefact {differs}" if differs else None
    compiled, kind, analysis = None, "native", manifest.analysis
    # Hashing the parameters and linking the machine code take a good part of a second each, on one core each.
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load_params, path, manifest, mesh)
        if obstacle is None:
            assert native is not None
            try:
                compiled = from_native(native, mesh_devices(mesh))
            except Exception as error:  # whatever XLA makes of it, the portable program does the same
                reason = f"{type(error).__name__} {error}".splitlines()[0].strip()
                obstacle = f"XLA could not load its native executable: {reason}"
        params = loading.result()
    if compiled is None:
        assert obstacle is not None
        if not any(note.startswith(obstacle) for note in manifest.notes):
            notes.append(f"portable program compiled: {obstacle}")
        exported = from_portable(portable) if is_signed else from_untrusted_portable(portable, path / PORTABLE)
        compiled = compile_exported(exported, manifest.param_specs, manifest.input_spec, manifest.output_spec, mesh)
        kind, analysis = "portable", Analysis.of(compiled)
    assert analysis is not None  # machine code comes with one
    executable = Executable(
        name=manifest.name,
        kind=kind,
        compiled=compiled,
        params=params,
        param_specs=manifest.param_specs,
        input_spec=manifest.input_spec,
        output_spec=manifest.output_spec,
        mesh=mesh,
        analysis=analysis,
        plan=manifest.plan,
        metadata=manifest.metadata,
    )
    parity = run_probe(executable, probe["inputs"], probe["outputs"], manifest.tolerance)
    if refresh and native is not None and key is not None and is_signed and kind == "portable":
        refreshed = dataclasses.replace(manifest, fingerprint=here, analysis=analysis, versions=versions())
        notes += _refresh(path, refreshed, compiled, key)
    return dataclasses.replace(executable, parity=parity, notes=tuple(notes))


def _check_custom_calls(manifest: Manifest, here: Fingerprint, path: Path) -> None:
    built_with, found = ({name: of.get(name) for name in _CUSTOM_CALLS_NEED} for of in (manifest.fingerprint, here))
    if manifest.custom_calls and (differs := difference(built_with, found)):
        raise DamagedArtifact(
            f"{path} calls {manifest.custom_calls[0]}, which is internal to jaxlib and orders weights for one CPU: "
            f"artefact {differs}"
        )


def _refresh(path: Path, manifest: Manifest, compiled: jax.stages.Compiled, key: bytes) -> list[str]:
    """Replaces the native executable of a verified manifest; returns a note if that failed, which is no error."""
    old = find_native(manifest)
    assert old is not None
    try:
        native = to_native(compiled)
        name = native_name(native)
        files = {other: record for other, record in manifest.files.items() if other != old}
        files[name] = FileRecord.of(native)
        if name != old:
            replace_file(path / name, native)
        replace_file(path / MANIFEST, dataclasses.replace(manifest, files=files).signed(key))
        if name != old:
            (path / old).unlink(missing_ok=True)
    except (OSError, NotSerializable) as error:
        return [f"the artefact's native executable was not refreshed: {error}"]
    return []
