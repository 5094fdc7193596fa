"""Loading an artefact: verified, on this machine's devices, its probe compared with the reference."""

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from jax.sharding import PartitionSpec as P

from cambrian.engine.artifact.contents import (
    check_probe,
    compile_portable,
    read_params,
    read_portable,
    read_probe,
    rebuilt_executable,
)
from cambrian.engine.artifact.fingerprint import Fingerprint, difference, fingerprint, versions
from cambrian.engine.artifact.layout import find_native, native_name, read_artifact, read_verified, rebuild_mesh
from cambrian.engine.artifact.manifest import MANIFEST, FileRecord, Manifest
from cambrian.engine.artifact.quarantine import prove
from cambrian.engine.artifact.save import NO_NATIVE
from cambrian.engine.artifact.serialization import NotSerializable, from_native, to_native
from cambrian.engine.artifact.signing import read_key
from cambrian.engine.artifact.verification import facts_of, read_note, write_note
from cambrian.engine.errors import DamagedArtifact, one_line
from cambrian.engine.runtime.deferred_probe import DeferredProbe
from cambrian.engine.runtime.executable import Analysis, Executable
from cambrian.sharding import DATA_AXIS, crosses_model_axis
from cambrian.sharding.host.files import replace_file

# What custom calls, and the order of weights that they expect, depend on.
_CUSTOM_CALLS_NEED = ("jaxlib", "CPU model", "CPU features", "CPU threads")


def load(
    path: str | Path,
    *,
    devices: Sequence[jax.Device] | None = None,
    signing_key: str | Path | None = None,
    refresh: bool = False,
    cache_key: str | None = None,
    defer_probe: bool = False,
) -> Executable:
    """Loads an artefact, runs its probe and compares the outputs with the reference.

    Loads the machine code if the manifest is signed with this user's key and was built where the fingerprint is equal:
    nothing is traced or compiled then. Otherwise, and where XLA refuses the machine code, compiles the portable
    program, and a note says why; one with custom calls, or for a mesh over several processes, is always compiled,
    without a note. A portable program that isn't signed may make no custom calls, and is loaded in a child process
    first. Where another process of this user replaces the machine code meanwhile, reads the artefact again. Once `load`
    has returned, nothing of the directory is needed any more.

    Args:
      path: directory of the artefact.
      devices: where to run, in mesh order; None for those of the artefact's platform.
      signing_key: path of the user's key file; None for the default one. None is made.
      refresh: whether to replace this user's machine code, where it can't be used, by that compiled now.
      cache_key: key under which this user's cache must have saved and signed the artefact; None for any artefact.
      defer_probe: whether to note in the directory that this machine has passed the whole probe and, where it has
        before, to leave a part of it to the first launch of inputs, as the executable's `probe`.

    Raises:
      DamagedArtifact: naming the file that is missing, truncated, altered, of another key, or not to be trusted.
      UsageError: if there is no such directory, or the devices don't suffice.
      OutOfMemory: if the memory doesn't hold it.
      ParityError: if the probe's outputs are too far from the reference.
    """
    path, key = Path(path), read_key(signing_key)
    load_here = functools.partial(_load, path, key, devices, refresh, cache_key, defer_probe)
    found = _manifest_file(path)
    try:
        return load_here()
    except DamagedArtifact:
        if key is None or _manifest_file(path) == found:
            raise
    return load_here()


def _manifest_file(path: Path) -> tuple[int, int] | None:
    """What tells a manifest from one that replaces it; None if there is none."""
    try:
        status = (path / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _load(
    path: Path,
    key: bytes | None,
    devices: Sequence[jax.Device] | None,
    refresh: bool,
    cache_key: str | None,
    defer_probe: bool,
) -> Executable:
    manifest, is_signed = read_artifact(path, key)
    if cache_key is not None and not is_signed:
        raise DamagedArtifact(f"{path / MANIFEST} must be signed with this user's key, got another signature or none")
    if cache_key not in (None, manifest.cache_key):
        raise DamagedArtifact(f"{path / MANIFEST} must be of the cache key {cache_key}, got {manifest.cache_key!r}")
    mesh, notes = rebuild_mesh(manifest, devices)
    notes = [*manifest.notes, *notes]
    here = fingerprint(list(mesh.devices.flat))
    check_custom_calls(manifest, here, path)
    if not is_signed:
        prove(path, manifest)
    if crosses_model_axis(mesh):  # each process gets whole outputs
        by_rows = jax.tree.map(
            lambda spec: dataclasses.replace(spec, partition_spec=P(DATA_AXIS)), manifest.output_spec
        )
        manifest = dataclasses.replace(manifest, output_spec=by_rows)

    # Hashing the parameters takes one core; so does linking machine code or compiling, for longer.
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_params, path, manifest, mesh)
        compiled, obstacle = _link_native(path, manifest, is_signed, here, mesh)
        exported, kind = read_portable(path, manifest, is_signed), "native"
        if compiled is None:
            kind, compiled = "portable", compile_portable(path, manifest, exported, mesh)
            expected = manifest.custom_calls or mesh.is_multi_process
            if not expected and not any(note.startswith(obstacle) for note in manifest.notes):
                notes.append(f"portable program compiled: {obstacle}")
        params = reading.result()
    executable = rebuilt_executable(manifest, mesh, kind, compiled, params)
    own_key = key if is_signed else None
    facts = facts_of(manifest, here, kind, compiled) if defer_probe else {}
    if defer_probe and own_key is not None and (parity := read_note(path, facts, own_key)) is not None:
        probe = DeferredProbe(manifest.mesh, *read_probe(path, manifest), manifest.tolerance)
        return dataclasses.replace(executable, parity=parity, probe=probe, notes=tuple(notes))
    parity = check_probe(path, manifest, executable)
    if refresh and kind == "portable" and own_key is not None and find_native(manifest):
        refreshed = dataclasses.replace(manifest, fingerprint=here, analysis=Analysis.of(compiled), versions=versions())
        notes += _refresh(path, refreshed, compiled, own_key)
    elif defer_probe and own_key is not None:
        write_note(path, facts, parity, own_key)
    return dataclasses.replace(executable, parity=parity, notes=tuple(notes))


def check_custom_calls(manifest: Manifest, here: Fingerprint, path: Path) -> None:
    """Raises DamagedArtifact if the program makes custom calls that another jaxlib or CPU was to serve."""
    built_with, found = ({name: of.get(name) for name in _CUSTOM_CALLS_NEED} for of in (manifest.fingerprint, here))
    if manifest.custom_calls and (differs := difference(built_with, found)):
        raise DamagedArtifact(
            f"{path} calls {manifest.custom_calls[0]}, which is internal to jaxlib and orders weights for one CPU: "
            f"artefact {differs}"
        )


def _link_native(
    path: Path, manifest: Manifest, is_signed: bool, here: Fingerprint, mesh: jax.sharding.Mesh
) -> tuple[jax.stages.Compiled | None, str]:
    """Loads the machine code; returns None, and the obstacle, where it can't be used."""
    if mesh.is_multi_process:
        return None, "machine code is for the devices of one process"
    name = find_native(manifest)
    if name is None:
        return None, NO_NATIVE
    native = read_verified(path / name, manifest.files[name])
    if not is_signed:
        return None, "the artefact is not signed with this user's key"
    if differs := difference(manifest.fingerprint, here):
        return None, f"artefact {differs}"
    try:
        return from_native(native.tobytes(), list(mesh.devices.flat)), ""
    except Exception as error:  # whatever XLA makes of it, the portable program does the same
        return None, f"XLA could not load its native executable: {one_line(error)}"


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
