"""The cache of artefacts: one directory for each key, built on first use."""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from engine.artifact import load, save
from engine.artifact_files import PARAMETERS
from engine.compile import compile_program
from engine.errors import ArtifactExists, DamagedArtifact
from engine.executable import Executable
from engine.files import temporary_sibling
from engine.manifest import canonical_json, read_manifest
from engine.signing import load_key
from engine.tensor_file import map_tensors
from sharding import Program, UsageError


def default_artifact_dir() -> Path:
    """`cambrian/artifacts` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cambrian" / "artifacts"


def artifact_key(facts: Mapping[str, Any]) -> str:
    """The name of the artefact of a program that depends on `facts`, JSON-compatible values; 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(facts)).hexdigest()


def source_digest(*folders: Path) -> str:
    """A digest of the Python files below `folders`: their contents and their names relative to each folder."""
    files = {
        f"{folder.name}/{path.relative_to(folder).as_posix()}": hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in folder.rglob("*.py")
    }
    return hashlib.sha256(canonical_json(files)).hexdigest()


def load_or_build(
    artifact_dir: Path,
    key: str,
    build: Callable[[], Program],
    *,
    devices: Sequence[jax.Device] | None = None,
    signing_key: Path | None = None,
) -> tuple[Executable, float | None]:
    """Loads the artefact of `key`; builds and saves it first where it is absent or damaged.

    What is returned was always loaded from the artefact. Any number of processes may do this at once: each succeeds,
    and the first to finish building leaves its artefact.

    Returns:
      The executable, with a note if the artefact was damaged; and the milliseconds that building and saving took, None
      if the artefact was there.

    Raises:
      UsageError: if `artifact_dir` can't be written to, or as `load` and `save`.
      ParityError: as `load`.
    """
    path = artifact_dir / key
    notes = []
    if path.exists():
        try:
            return _load_twice(path, devices, signing_key), None
        except DamagedArtifact as damage:
            notes.append(f"artefact rebuilt: {damage}")
    start = time.perf_counter()
    load_key(signing_key)
    with _writing_to(artifact_dir):
        _check_writable(artifact_dir)
    compiled = compile_program(build())
    with _writing_to(artifact_dir):
        if notes:
            _discard(path)
        try:
            save(compiled, path, signing_key)
            _share_parameters(path)
        except ArtifactExists:  # another process was first
            pass
    build_ms = 1e3 * (time.perf_counter() - start)
    del compiled
    loaded = _load_twice(path, devices, signing_key)
    return dataclasses.replace(loaded, notes=(*notes, *loaded.notes)), build_ms


def _load_twice(path: Path, devices: Sequence[jax.Device] | None, signing_key: Path | None) -> Executable:
    try:
        return load(path, devices=devices, signing_key=signing_key, refresh=True)
    except DamagedArtifact:
        # Another process may have replaced files between the manifest's reading and theirs.
        return load(path, devices=devices, signing_key=signing_key, refresh=True)


@contextlib.contextmanager
def _writing_to(artifact_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"the artefact directory must be writable and have space, got {artifact_dir}: {error.strerror}"
        ) from error


def _check_writable(artifact_dir: Path) -> None:
    """Raises OSError now rather than after minutes of building."""
    artifact_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=artifact_dir):
        pass


def _discard(path: Path) -> None:
    """Takes a damaged artefact out of the way by one rename, then removes it."""
    aside = temporary_sibling(path)
    try:
        path.rename(aside)
    except FileNotFoundError:  # another process was first
        return
    shutil.rmtree(aside)


def _share_parameters(path: Path) -> None:
    """Makes the parameter file one with that of a sibling artefact that has the same content, if there is one."""
    parameters = path / PARAMETERS
    digest = read_manifest(path, None)[0].files[PARAMETERS].sha256
    for sibling in path.parent.iterdir():
        if sibling == path or sibling.name.startswith("."):
            continue
        linked = temporary_sibling(parameters)
        try:
            if read_manifest(sibling, None)[0].files[PARAMETERS].sha256 != digest:
                continue
            map_tensors(sibling / PARAMETERS, digest)
            os.link(sibling / PARAMETERS, linked)
        except (DamagedArtifact, KeyError, OSError):
            continue  # a sibling that is damaged, or a file system without hard links: the copy stays
        os.replace(linked, parameters)
        return
