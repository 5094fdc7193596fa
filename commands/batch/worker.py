"""The actor of a batch job: classifies parts, and returns each as the content of its output file."""

import dataclasses
import os
import pickle
import platform
import time
from typing import Any

from cambrian.commands.batch.classifier import share_gpu
from cambrian.commands.batch.parts import ParquetRows, Part
from cambrian.commands.batch.rows import rows_of, to_parquet
from cambrian.commands.batch.shipped import ShippedArtifact
from cambrian.commands.images import ModelImages
from cambrian.commands.images.file_system import LocalFiles
from cambrian.commands.images.folder import FolderSource
from cambrian.commands.run.classify import classify, logit_names
from cambrian.sharding import OutOfMemory, UsageError
from cambrian.sharding.host import host, reserve_cores


class WorkerFailed(RuntimeError):
    """What a worker raised, other than a refusal; the message names its machine."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """What a worker returns of a part.

    Attributes:
      name: of the part.
      content: of its output file.
      num_images: of the part.
      worker: identifies the process.
      executable: keys of the report that describe the executable which this worker loaded.
      notes: of that executable.
      started_s, ended_s: when the worker had the part, in seconds since the epoch.
    """

    name: str
    content: bytes = dataclasses.field(repr=False)
    num_images: int
    worker: str
    executable: dict[str, Any]
    notes: tuple[str, ...]
    started_s: float
    ended_s: float


class Worker:
    """A callable class for `Dataset.map_batches`: takes pickled parts, returns pickled `Finished` or exceptions.

    It raises nothing, so what Ray sees as failed are processes and nodes, whose parts it gives to others.

    Args:
      artifact: as the driver shipped it.
      images: how the job's images are preprocessed and numbered; each part brings its own source.
      cores: number of cores to run on; 0 for all of the machine.
      signing_key: the user's key file; empty for the default one.
    """

    def __init__(self, artifact: ShippedArtifact, images: ModelImages, cores: int, signing_key: str):
        self._images, self._error, self._name = images, None, f"{platform.node()}, process {os.getpid()}"
        try:
            host.permit("core_affinity", "cpu_latency", "malloc")  # this process belongs to Cambrian
            if cores:
                reserve_cores(cores)
            share_gpu()
            start = time.perf_counter()
            self._executable = artifact.load(signing_key or None)
            self._load_ms = 1e3 * (time.perf_counter() - start)
        except Exception as error:  # raised here, it would reach the driver as text among Ray's own
            self._error = self._portable(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"finished": [pickle.dumps(self._finish(pickle.loads(part))) for part in batch["part"]]}

    def _finish(self, part: Part) -> Finished | Exception:
        if self._error is not None:
            return self._error
        try:
            return self._classify(part)
        except Exception as error:
            return self._portable(error)

    def _classify(self, part: Part) -> Finished:
        started_s = time.time()
        self._check_folder(part)
        source = part.images.read_images() if isinstance(part.images, ParquetRows) else part.images
        images = dataclasses.replace(self._images, source=source)
        labels: list[int | None] = [None] * len(source)
        if isinstance(part.images, FolderSource):
            labels = [None if label is None else images.label_of_class[label] for _, label in part.images.files]
        paths = [source.name(index) for index in range(len(source))]
        # One host thread: this process works on as many parts at a time as it has threads.
        batches = classify(self._executable, images, threads=1, skip_bad_images=True)
        rows = rows_of(batches, paths, labels, images.class_names or (), logit_names(self._executable, images))
        content = to_parquet(rows)
        executable, parity = self._executable, self._executable.parity
        assert parity is not None  # of a loaded executable
        facts = {
            "executable": executable.kind,
            "load_ms": self._load_ms,
            "parity_max_relative_error": parity.max_relative_error,
            "parity_top1_agreement": parity.top1_agreement,
        }
        return Finished(part.name, content, len(part), self._name, facts, executable.notes, started_s, time.time())

    def _check_folder(self, part: Part) -> None:
        """A folder that this machine lacks is no folder of unreadable images."""
        images = part.images
        is_local = isinstance(images, FolderSource) and isinstance(images.file_system, LocalFiles)
        if is_local and not os.path.isdir(images.folder):
            raise UsageError(f"data must be a folder that every worker sees, got {images.folder}")

    def _portable(self, error: Exception) -> Exception:
        """An error that unpickles elsewhere: refusals and a lack of memory keep their types."""
        if isinstance(error, OutOfMemory | MemoryError):
            return OutOfMemory(f"on {self._name}: {error}")
        if isinstance(error, UsageError):
            return UsageError(f"on {self._name}: {error}")
        return WorkerFailed(f"on {self._name}: {type(error).__name__}: {error}")
