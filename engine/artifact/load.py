"""Loading an artefact: verified, on this machine's devices, its probe compared with the reference."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from cambrian.engine.artifact.fingerprint import Fingerprint, difference, fingerprint
from cambrian.engine.artifact.layout import (
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
from cambrian.engine.artifact.manifest import MANIFEST, FileRecord, Manifest
from cambrian.engine.artifact.save import NO_NATIVE
from cambrian.engine.artifact.serialization import (
    NotSerializable,
    from_native,
    from_portable,
    from_untrusted_portable,
    to_native,
)
from cambrian.engine.artifact.signing import read_key
from cambrian.engine.artifact.tensor_file import map_tensors
from cambrian.engine.artifact.versions import versions
from cambrian.engine.errors import DamagedArtifact
from cambrian.engine.files import replace_file
from cambrian.engine.runtime.compile import compile_exported
from cambrian.engine.runtime.executable import Analysis, Executable
from cambrian.engine.runtime.parity import run_probe

# What custom calls, and the order of weights that they want, depend on.
_CUSTOM_CALLS_NEED = ("jaxlib", "CPU model", "CPU features", "CPU threads")


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
        obstacle = NO_NATIVE
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
