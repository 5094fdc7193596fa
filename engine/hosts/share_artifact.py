"""How the artefact of process 0 reaches the others: by its path where they see it, else over their connections."""

import base64
import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from cambrian.engine.artifact.layout import PARAMETERS, PORTABLE, PROBE, read_artifact
from cambrian.engine.artifact.manifest import MANIFEST, canonical_json
from cambrian.engine.hosts.group import Group
from cambrian.sharding import UsageError
from cambrian.sharding.host.files import path_named

_CONTENT = (PARAMETERS, PORTABLE, PROBE)  # less machine code, which each host may have of its own
_CHUNK_BYTES = 2**23


def content_digest(path: Path) -> str:
    """Returns a digest of an artefact's portable program, parameters and probe, as its manifest states theirs.

    Raises:
      UsageError, DamagedArtifact: if there is no such artefact.
    """
    manifest, _ = read_artifact(path, None)
    return hashlib.sha256(canonical_json([manifest.files[name].sha256 for name in _CONTENT])).hexdigest()


@contextlib.contextmanager
def shared_artifact(group: Group, path: Path | None) -> Iterator[Path]:
    """Yields the directory where this process finds the artefact of process 0; called by all processes.

    Args:
      path: of the artefact; None in all but process 0.
    """
    offer = None if path is None else (str(path.absolute()), content_digest(path))
    place, digest = group.exchange(offer)[0]
    is_there = _has(Path(place), digest)
    if all(group.exchange(is_there)):
        yield Path(place)
        return
    with group.scratch_folder() as folder:
        for name in (MANIFEST, *_CONTENT):
            _copy(group, None if path is None else path / name, None if is_there else folder / name)
        yield Path(place) if is_there else folder


def _has(path: Path, digest: str) -> bool:
    try:
        return content_digest(path) == digest
    except UsageError:
        return False


def _copy(group: Group, source: Path | None, target: Path | None) -> None:
    with contextlib.nullcontext() if target is None else path_named(target), contextlib.ExitStack() as files:
        read = None if source is None else files.enter_context(source.open("rb"))
        written = None if target is None else files.enter_context(target.open("wb"))
        while chunk := group.exchange(read and base64.b64encode(read.read(_CHUNK_BYTES)).decode())[0]:
            if written is not None:
                written.write(base64.b64decode(chunk))
