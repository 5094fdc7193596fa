"""The artefact: a compiled program as one directory, to be run without its model's code or weights.

    manifest.json           what it is, and the SHA-256 of the files below; signed
    parameters.safetensors  mapped into memory, and shared by all virtual devices
    native-DIGEST.bin       machine code; loaded if the manifest is signed by this user and the fingerprint is equal
    portable.bin            StableHLO; compiled where the machine code can't be used
    probe.safetensors       one batch of inputs and its unsharded float32 outputs

The native file's name carries the digest of its content, so that two processes that refresh it never mix theirs.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from cambrian.engine.artifact.manifest import MANIFEST, Manifest, read_manifest
from cambrian.engine.artifact.tensor_file import map_tensors
from cambrian.engine.errors import DamagedArtifact
from cambrian.engine.runtime.compile import put_params
from cambrian.sharding import UsageError, make_mesh
from cambrian.sharding.host import acquire_devices, host_cores

PARAMETERS, PORTABLE, PROBE = "parameters.safetensors", "portable.bin", "probe.safetensors"
_NATIVE = re.compile(r"native-[0-9a-f]{12}\.bin")


def read_artifact(path: Path, key: bytes | None) -> tuple[Manifest, bool]:
    """The manifest, and whether it is signed with `key`.

    Raises:
      UsageError: if there is no such directory.
      DamagedArtifact: if the manifest can't be read or lists other files than an artefact has.
    """
    if not path.is_dir():
        raise UsageError(f"an artefact is a directory with a {MANIFEST}, got {path}")
    manifest, is_signed = read_manifest(path, key)
    # The names come from a file that may be anyone's: none but ours may be opened.
    strange = [name for name in manifest.files if name not in (PARAMETERS, PORTABLE, PROBE) and not _is_native(name)]
    missing = [name for name in (PARAMETERS, PORTABLE, PROBE) if name not in manifest.files]
    if strange or missing:
        raise DamagedArtifact(f"{path / MANIFEST} must list the artefact's files: missing {missing}, unknown {strange}")
    if find_native(manifest) and manifest.analysis is None:
        raise DamagedArtifact(f"{path / MANIFEST} must hold the analysis of {find_native(manifest)}, got none")
    return manifest, is_signed


def rebuild_mesh(manifest: Manifest, devices: Sequence[jax.Device] | None) -> tuple[Mesh, list[str]]:
    """The artefact's mesh on `devices`, or on those of its platform, and notes on the choice of devices."""
    notes: list[str] = []
    if devices is None:
        # Each launch gets as many cores as it was compiled for.
        stated = manifest.fingerprint.get("CPU threads")
        cores = stated if isinstance(stated, int) and 0 < stated <= host_cores() else None
        at_once = host_cores() // (cores or host_cores())
        devices, notes = acquire_devices(manifest.mesh.num_devices, manifest.platform, at_once, cores)
    elif devices[0].platform != manifest.platform:
        raise UsageError(f"the artefact needs {manifest.platform} devices, got {devices[0].platform}")
    return make_mesh(manifest.mesh, devices), notes


def mesh_devices(mesh: Mesh) -> list[jax.Device]:
    return list(mesh.devices.flat)


def read_verified(path: Path, name: str, manifest: Manifest) -> bytes:
    """The bytes of a file; what is returned is what was hashed.

    Raises:
      DamagedArtifact: naming the file, if it is missing or not what the manifest states.
    """
    record = manifest.files[name]
    try:
        data = (path / name).read_bytes()
    except OSError as error:
        raise DamagedArtifact(f"{path / name} must be a readable file: {error.strerror}") from None
    if len(data) != record.num_bytes:
        raise DamagedArtifact(f"{path / name} must have {record.num_bytes} bytes, got {len(data)}")
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise DamagedArtifact(f"{path / name} must have the SHA-256 that the manifest states, {record.sha256}")
    return data


def load_params(path: Path, manifest: Manifest, mesh: Mesh) -> list[jax.Array]:
    """The parameters on the devices of `mesh`, where virtual devices share the memory map.

    Raises:
      DamagedArtifact: if the file is missing or not what the manifest states.
    """
    tensors = map_tensors(path / PARAMETERS, manifest.files[PARAMETERS].sha256)
    found = {name: (array.shape, array.dtype) for name, array in tensors.items()}
    stated = {spec.name: (spec.shape, np.dtype(spec.dtype)) for spec in manifest.param_specs}
    if found != stated:
        raise DamagedArtifact(f"{path / PARAMETERS} must hold the parameters that the manifest lists, but holds others")
    return put_params([tensors[spec.name] for spec in manifest.param_specs], manifest.param_specs, mesh)


def native_name(native: bytes) -> str:
    """The name of the file that holds this machine code."""
    return f"native-{hashlib.sha256(native).hexdigest()[:12]}.bin"


def _is_native(name: str) -> bool:
    return _NATIVE.fullmatch(name) is not None


def find_native(manifest: Manifest) -> str | None:
    """The name of the manifest's native file; None if it has none."""
    return next(filter(_is_native, manifest.files), None)
