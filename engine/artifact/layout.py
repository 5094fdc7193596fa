"""The artefact: a compiled program as one directory, to be run without its model's code or weights.

    manifest.json           what it is, and the SHA-256 of the files below; signed
    parameters.safetensors  read into memory that all virtual devices share
    native-DIGEST.bin       machine code; loaded if this user signed the manifest and the fingerprint is equal
    portable.bin            StableHLO; compiled where the machine code can't be used
    probe.safetensors       one batch of inputs and its unsharded float32 outputs
    verification.json       note that this machine has passed the probe; signed; only where a start has deferred it

The native file's name carries the digest of its content, so that two processes that refresh it never mix theirs. Once
an artefact is loaded, its directory may change or vanish.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from cambrian.engine.artifact.manifest import MANIFEST, FileRecord, Manifest, read_manifest
from cambrian.engine.errors import DamagedArtifact, damage_named
from cambrian.sharding import ALIGNMENT, UsageError, make_mesh
from cambrian.sharding.host import acquire_devices, host_cores
from cambrian.sharding.host.files import open_regular

PARAMETERS, PORTABLE, PROBE = "parameters.safetensors", "portable.bin", "probe.safetensors"
_NATIVE = re.compile(r"native-[0-9a-f]{12}\.bin")
_CHUNK_BYTES = 2**20  # still in the CPU's cache when it is hashed


def read_artifact(path: Path, key: bytes | None) -> tuple[Manifest, bool]:
    """Reads the manifest of an artefact, and whether it is signed with `key`.

    Raises:
      UsageError: if there is no such directory.
      DamagedArtifact: if the manifest can't be read or doesn't list the files of an artefact.
    """
    if not os.path.isdir(path):  # False, too, where the system lets this user look no further
        raise UsageError(f"an artefact must be a directory with a {MANIFEST}, got {path}")
    manifest, is_signed = read_manifest(path, key)
    # The names come from a file that may be anyone's: no other file may be opened.
    strange = [name for name in manifest.files if name not in (PARAMETERS, PORTABLE, PROBE) and not _is_native(name)]
    missing = [name for name in (PARAMETERS, PORTABLE, PROBE) if name not in manifest.files]
    if strange or missing:
        raise DamagedArtifact(f"{path / MANIFEST} must list the artefact's files: missing {missing}, unknown {strange}")
    if find_native(manifest) and manifest.analysis is None:
        raise DamagedArtifact(f"{path / MANIFEST} must hold the analysis of {find_native(manifest)}, got none")
    return manifest, is_signed


def rebuild_mesh(manifest: Manifest, devices: Sequence[jax.Device] | None) -> tuple[Mesh, list[str]]:
    """Makes the artefact's mesh of `devices`, or of devices of its platform; returns notes on their choice, too."""
    notes: list[str] = []
    if devices is None:
        # Each launch gets as many threads as it was compiled for, with custom calls even on fewer cores of that host:
        # they order weights for a number of threads.
        stated = manifest.fingerprint.get("CPU threads")
        most = (os.cpu_count() or 1) if manifest.custom_calls else host_cores()
        cores = stated if isinstance(stated, int) and 0 < stated <= most else None
        at_once = max(host_cores() // (cores or host_cores()), 1)
        devices, notes = acquire_devices(manifest.mesh.num_devices, manifest.platform, at_once, cores)
        if cores is not None and cores > host_cores():
            notes.append(f"a launch was compiled for {cores} cores and runs on {host_cores()}")
    elif others := {device.platform for device in devices} - {manifest.platform}:
        raise UsageError(f"expected {manifest.platform} devices for the artefact, got {', '.join(sorted(others))}")
    return make_mesh(manifest.mesh, devices), notes


def read_verified(path: Path, record: FileRecord) -> np.ndarray:
    """Reads a file and hashes what was read, in one pass.

    Returns:
      Its content (num_bytes,) uint8, read-only, in anonymous memory aligned to 64 bytes: nothing that happens to the
      file reaches it.

    Raises:
      DamagedArtifact: naming the file, if it can't be read or isn't what `record` states.
      OutOfMemory: if the memory doesn't hold it.
    """
    with damage_named(path, "a readable file"), open_regular(path) as file:
        num_bytes = file.seek(0, 2)
        if num_bytes != record.num_bytes:
            raise DamagedArtifact(f"{path} must have {record.num_bytes} bytes, got {num_bytes}")
        file.seek(0)
        memory = np.empty(num_bytes + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        content = memory[start : start + num_bytes]
        digest, num_read = hashlib.sha256(), 0
        while count := file.readinto(content[num_read : num_read + _CHUNK_BYTES].data):
            digest.update(content[num_read : num_read + count].data)
            num_read += count
    if num_read < num_bytes or digest.hexdigest() != record.sha256:
        raise DamagedArtifact(f"{path} must have the SHA-256 that the manifest states, {record.sha256}")
    content.flags.writeable = False
    return content


def native_name(native: bytes) -> str:
    """Returns the name of the file that holds this machine code."""
    return f"native-{hashlib.sha256(native).hexdigest()[:12]}.bin"


def _is_native(name: str) -> bool:
    return _NATIVE.fullmatch(name) is not None


def find_native(manifest: Manifest) -> str | None:
    """Returns the name of the manifest's native file; None if it has none."""
    return next(filter(_is_native, manifest.files), None)
