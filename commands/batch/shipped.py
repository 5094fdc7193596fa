"""How an artefact reaches the workers of a cluster: by its path where they see it, else through Ray's object store."""

import dataclasses
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from cambrian.engine import load
from cambrian.engine.artifact.layout import read_artifact
from cambrian.engine.artifact.manifest import MANIFEST
from cambrian.engine.runtime.executable import Executable
from cambrian.sharding import UsageError
from cambrian.sharding.host import return_freed_memory


@dataclasses.dataclass(frozen=True, slots=True)
class ShippedArtifact:
    """An artefact that processes on other machines can load.

    Attributes:
      path: its directory on the machine that shipped it.
      manifest_sha256: digest of its manifest, which tells whether another machine has the same directory.
      files: reference to the content of its files by name, in Ray's object store; None if only the path is shipped.
    """

    path: str
    manifest_sha256: str
    files: Any = dataclasses.field(default=None, repr=False)

    def load(self, signing_key: str | os.PathLike | None = None) -> Executable:
        """Loads the artefact in this process, with the same checks as `cambrian.load`.

        Raises:
          UsageError, DamagedArtifact, OutOfMemory, ParityError: as `cambrian.load`.
        """
        if _manifest_sha256(Path(self.path)) == self.manifest_sha256:
            return _load(Path(self.path), signing_key)
        if self.files is None:
            raise UsageError(f"artifact must be a directory that every worker sees, got {self.path}")
        import ray  # pyright: ignore[reportMissingImports]

        with tempfile.TemporaryDirectory(prefix="cambrian-") as directory:
            for name, content in ray.get(self.files).items():
                (Path(directory) / name).write_bytes(content)
            return _load(Path(directory), signing_key)  # needs nothing of the directory any more


def ship(path: str | os.PathLike, *, through_object_store: bool = True) -> ShippedArtifact:
    """Makes an artefact loadable on every node of the cluster that this process is connected to.

    Args:
      path: directory of the artefact.
      through_object_store: whether to put its files there, for nodes that don't see the path.

    Raises:
      UsageError: if there is no such directory, or a file can't be read.
      DamagedArtifact: if its manifest can't be read.
    """
    directory = Path(path).expanduser().absolute()
    manifest, _ = read_artifact(directory, None)
    files = None
    if through_object_store:
        import ray  # pyright: ignore[reportMissingImports]

        try:
            files = ray.put({name: (directory / name).read_bytes() for name in (MANIFEST, *manifest.files)})
        except OSError as error:
            raise UsageError(f"an artefact's files must be readable, got {error.filename}: {error.strerror}") from None
    return ShippedArtifact(str(directory), _manifest_sha256(directory), files)


def _manifest_sha256(directory: Path) -> str:
    """Empty if there is no manifest."""
    try:
        return hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return ""


def _load(directory: Path, signing_key: str | os.PathLike | None) -> Executable:
    return_freed_memory(read_artifact(directory, None)[0].mesh.num_devices)
    return load(directory, signing_key=None if signing_key is None else Path(signing_key))
