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

from cambrian.engine.artifact.layout import PARAMETERS, read_artifact, read_verified
from cambrian.engine.artifact.load import load
from cambrian.engine.artifact.manifest import canonical_json, read_manifest
from cambrian.engine.artifact.save import compute_parts, write_artifact
from cambrian.engine.artifact.signing import load_key, read_key
from cambrian.engine.errors import ArtifactExists, DamagedArtifact
from cambrian.engine.runtime.executable import Executable
from cambrian.sharding import Program, UsageError
from cambrian.sharding.host import cache_dir
from cambrian.sharding.host.files import open_regular, remove_abandoned, temporary_sibling


def default_artifact_dir() -> Path:
    """Returns `artifacts` in the user's cache folder."""
    return cache_dir() / "artifacts"


def artifact_key(facts: Mapping[str, Any]) -> str:
    """Returns the name of the artefact of a program that depends on `facts`, JSON-compatible values: 64 hex digits."""
    return hashlib.sha256(canonical_json(facts)).hexdigest()


def load_or_build(
    artifact_dir: Path,
    key: str,
    build: Callable[[], Program],
    *,
    devices: Sequence[jax.Device] | None = None,
    signing_key: Path | None = None,
    defer_probe: bool = False,
) -> tuple[Executable, float | None]:
    """Loads the artefact of `key`; builds and saves it first where it is absent or damaged.

    The executable is always loaded from the artefact. Any number of processes may do this at once: each succeeds, and
    the first to finish building leaves its artefact. An artefact of another key, or without this user's signature,
    counts as damaged.

    Args:
      artifact_dir: directory of the cache; made if absent.
      key: name of the artefact.
      build: makes the program.
      devices: where to run, in mesh order; None for those of the program's platform.
      signing_key: path of the user's key file; None for the default one.
      defer_probe: as `load`.

    Returns:
      The executable, with a note if the artefact was damaged; and the milliseconds that building and saving took, None
      if the artefact was there.

    Raises:
      UsageError: if `artifact_dir` can't be written to, or as `load` and `save`.
      OutOfMemory, ParityError: as `load`.
    """
    path = artifact_dir / key
    notes: list[str] = []
    build_ms = None
    while True:
        inode, damaged = _inode(path), False
        try:
            loaded = load(
                path,
                devices=devices,
                signing_key=signing_key,
                refresh=True,
                cache_key=key,
                defer_probe=defer_probe,
            )
            return dataclasses.replace(loaded, notes=(*notes, *loaded.notes)), build_ms
        except UsageError as error:
            # Where there is no artefact (yet, or another process has moved a damaged one aside), one is built.
            if inode is not None and path.exists():
                if not isinstance(error, DamagedArtifact) or build_ms is not None:
                    raise
                damaged = True
                notes.append(f"artefact rebuilt: {error}")
        build_ms = (build_ms or 0.0) + _build(path, key, build, signing_key, inode if damaged else None)


def build_if_absent(
    artifact_dir: Path, key: str, build: Callable[[], Program], signing_key: Path | None = None
) -> tuple[Path, float | None, list[str]]:
    """Builds and saves the artefact of `key` where it is absent or damaged; loads none.

    Args:
      artifact_dir, key, build, signing_key: as `load_or_build`.

    Returns:
      The artefact's directory; the milliseconds that building and saving took, None if it was there; and notes.

    Raises:
      UsageError: as `load_or_build`.
    """
    path = artifact_dir / key
    inode, notes = _inode(path), []
    try:
        manifest, is_signed = read_artifact(path, read_key(signing_key))
        if not is_signed or manifest.cache_key != key:
            raise DamagedArtifact(f"{path} must be of its cache key and signed with this user's key, got another one")
        for name, record in manifest.files.items():
            read_verified(path / name, record)
        return path, None, []
    except DamagedArtifact as error:
        notes.append(f"artefact rebuilt: {error}")
    except UsageError:  # there is none
        pass
    return path, _build(path, key, build, signing_key, inode), notes


def _build(
    path: Path, key: str, build: Callable[[], Program], signing_key: Path | None, damaged_inode: int | None
) -> float:
    """Builds the artefact, unless another process does so first; returns the milliseconds that it took."""
    start = time.perf_counter()
    load_key(signing_key)
    with _writing_to(path.parent):
        _check_writable(path.parent)
        remove_abandoned(path.parent)
    parts = compute_parts(build())
    with _writing_to(path.parent), _set_aside(path, damaged_inode):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # whoever clears a cache may do so meanwhile
            write_artifact(parts, path, signing_key, key)
            with contextlib.suppress(DamagedArtifact, OSError):
                _share_parameters(path)
        except ArtifactExists:  # another process was first
            pass
    return 1e3 * (time.perf_counter() - start)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


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


@contextlib.contextmanager
def _set_aside(path: Path, damaged_inode: int | None) -> Iterator[None]:
    """Moves a damaged artefact aside by one rename, unless another process has replaced it meanwhile.

    It is removed last, so that no directory made meanwhile gets its inode number.
    """
    aside = temporary_sibling(path)
    if damaged_inode is not None and _inode(path) == damaged_inode:
        with contextlib.suppress(FileNotFoundError):  # another process was first
            path.rename(aside)
    try:
        yield
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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
            with open_regular(sibling / PARAMETERS) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    continue
            os.link(sibling / PARAMETERS, linked)
        except (DamagedArtifact, KeyError, OSError):
            continue  # a sibling that is damaged, or a file system without hard links: the copy stays
        os.replace(linked, parameters)
        return
