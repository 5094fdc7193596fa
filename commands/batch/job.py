"""The folder of a batch job: which job it is, and which of its parts are finished."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from cambrian.commands.batch.parts import Part
from cambrian.commands.output import JOB, RESULTS, ROWS
from cambrian.engine.artifact.layout import PARAMETERS, PORTABLE, PROBE
from cambrian.engine.artifact.manifest import Manifest, canonical_json
from cambrian.sharding import UsageError
from cambrian.sharding.host.files import replace_file

_OTHER = {"artifact": "another artefact", "images": "other images"}


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A job's folder: job.json, and a file for each finished part in rows/.

    Attributes:
      identity: digests of the artefact and of the images, by which a folder is known as this job's.
    """

    folder: Path
    parts: Sequence[Part]
    identity: dict[str, str]

    @classmethod
    def of(cls, folder: Path, parts: Sequence[Part], manifest: Manifest) -> "Job":
        """The job that classifies these parts by this artefact.

        Machine code isn't part of its identity: it is exchanged where versions change.

        Raises:
          UsageError: if the folder holds another job, or the results of another command.
        """
        files = {name: manifest.files[name].sha256 for name in (PARAMETERS, PORTABLE, PROBE)}
        identity = {
            "artifact": _digest({"files": files, "metadata": manifest.metadata}),
            "images": _digest([part.name for part in parts]),
        }
        job = cls(folder, parts, identity)
        job._check_folder()
        return job

    def _check_folder(self) -> None:
        path = self.folder / JOB
        if not path.exists():
            if found := [name for name in (ROWS, *RESULTS) if (self.folder / name).exists()]:
                raise UsageError(
                    f"output_dir must be a new folder, or that of the same batch job, got {self.folder} with {found[0]}"
                )
            return
        try:
            found = dict(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"output_dir must hold a readable {JOB}, got {path}: {error}") from None
        differing = [_OTHER[name] for name, value in self.identity.items() if found.get(name) != value]
        if differing:
            raise UsageError(
                f"output_dir must be a new folder, or that of the same batch job, got {self.folder} of a job with "
                f"{' and '.join(differing)}"
            )

    def begin(self) -> None:
        """Marks the folder as this job's, before anything is written to it."""
        if not (self.folder / JOB).exists():
            replace_file(self.folder / JOB, json.dumps(self.identity, indent=2).encode() + b"\n")
        (self.folder / ROWS).mkdir(exist_ok=True)  # a folder of rows without job.json is somebody else's

    def file(self, name: str) -> Path:
        """The output file of a part."""
        return self.folder / ROWS / name

    def finished(self) -> list[Part]:
        """The parts whose files are there."""
        return [part for part in self.parts if self.file(part.name).exists()]

    def missing(self) -> list[Part]:
        """The parts that aren't finished."""
        return [part for part in self.parts if not self.file(part.name).exists()]


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
