"""Saving an executable as an artefact, and loading it without its model's code or weights."""

import dataclasses
import datetime
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
import jaxlib.version
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
from engine.compile import compile_exported
from engine.errors import ArtifactExists
from engine.executable import Analysis, Executable
from engine.files import replace_file, sync_directory, temporary_sibling, write_file
from engine.fingerprint import difference, fingerprint
from engine.manifest import MANIFEST, FileRecord, Manifest
from engine.parity import probe_inputs, run_probe
from engine.serialization import NotSerializable, from_native, from_portable, to_native, to_portable
from engine.signing import load_key, read_key
from engine.tensor_file import map_tensors, write_tensors
from sharding import UsageError, mesh_shape


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
    path, program = Path(path), executable.program
    if program is None:
        raise UsageError(f"only an executable compiled from its program can be saved, got a {executable.kind} one")
    if path.exists():
        raise ArtifactExists(f"an artefact is saved to a new directory, got {path}, which exists")
    key = load_key(signing_key)
    path.parent.mkdir(parents=True, exist_ok=True)
    directory = temporary_sibling(path)
    try:
        directory.mkdir()
        files, notes = _write_parts(executable, directory)
        manifest = Manifest(
            name=executable.name,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            mesh=mesh_shape(executable.mesh),
            platform=mesh_devices(executable.mesh)[0].platform,
            input_spec=executable.input_spec,
            output_spec=executable.output_spec,
            plan=executable.plan,
            rules=program.rules,
            metadata=executable.metadata,
            notes=(*executable.notes, *notes),
            versions=_versions(),
            fingerprint=fingerprint(mesh_devices(executable.mesh)),
            analysis=executable.analysis,
            tolerance=program.tolerance,
            files=files,
            param_specs=executable.param_specs,
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


def _write_parts(executable: Executable, directory: Path) -> tuple[dict[str, FileRecord], list[str]]:
    program = executable.program
    assert program is not None
    inputs = probe_inputs(program.input_spec)
    tensors = {
        PARAMETERS: [(spec.name, array) for spec, array in zip(program.param_specs, program.params, strict=True)],
        PROBE: [("inputs", inputs), ("outputs", np.asarray(program.reference(inputs), np.float32))],
    }
    files, notes = {}, []
    for name, named_arrays in tensors.items():
        digest = write_tensors(directory / name, named_arrays)
        files[name] = FileRecord(digest, (directory / name).stat().st_size)
    parts = {PORTABLE: to_portable(program)}
    try:
        native = to_native(executable.compiled)
        parts[native_name(native)] = native
    except NotSerializable as error:
        notes.append(f"the artefact holds no native executable, XLA could not serialize it: {error}")
    for name, data in parts.items():
        write_file(directory / name, data)
        files[name] = FileRecord.of(data)
    return files, notes


def load(
    path: str | Path,
    *,
    devices: Sequence[jax.Device] | None = None,
    signing_key: str | Path | None = None,
    refresh: bool = False,
) -> Executable:
    """Loads an artefact, runs its probe and compares.

    The machine code is used if the manifest is signed with this user's key and was built where the fingerprint is
    equal: nothing is traced or compiled then. Otherwise the portable program is compiled, and a note says why.

    Args:
      devices: where to run, in mesh order; None for those of the artefact's platform.
      signing_key: the user's key file; None for the default one. None is made.
      refresh: where only the fingerprint differs, replace the artefact's machine code by that compiled now.

    Raises:
      DamagedArtifact: naming the file that is missing, cut short or altered.
      UsageError: if there is no such directory or the devices don't suffice.
      ParityError: if the probe's outputs are too far from the reference.
    """
    path, key = Path(path), read_key(signing_key)
    manifest, is_signed = read_artifact(path, key)
    mesh, notes = rebuild_mesh(manifest, devices)
    notes = [*manifest.notes, *notes]
    native_file = find_native(manifest)
    native = read_verified(path, native_file, manifest) if native_file else None
    portable = read_verified(path, PORTABLE, manifest)
    probe = map_tensors(path / PROBE, manifest.files[PROBE].sha256)
    params = load_params(path, manifest, mesh)

    here = fingerprint(mesh_devices(mesh))
    differs = difference(manifest.fingerprint, here)
    if native is None:
        obstacle = "the artefact holds no native executable"
    elif not is_signed:
        obstacle = "the artefact is not signed with this user's key"
    else:
        obstacle = f"artefact {differs}" if differs else None
    if obstacle is None:
        assert native is not None
        kind, compiled, analysis = "native", from_native(native, mesh_devices(mesh)), manifest.analysis
    else:
        notes.append(f"portable program compiled: {obstacle}")
        compiled = compile_exported(
            from_portable(portable), manifest.param_specs, manifest.input_spec, manifest.output_spec, mesh
        )
        kind, analysis = "portable", Analysis.of(compiled)
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
    if refresh and native is not None and key is not None and is_signed and differs:
        refreshed = dataclasses.replace(manifest, fingerprint=here, analysis=analysis, versions=_versions())
        notes += _refresh(path, refreshed, compiled, key)
    return dataclasses.replace(executable, parity=parity, notes=tuple(notes))


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


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "numpy": np.__version__,
    }
