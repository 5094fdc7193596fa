"""Classifier: a callable class for `Dataset.map_batches` of Ray Data."""

import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from cambrian.commands.batch.rows import SCHEMA, rows_of
from cambrian.commands.batch.shipped import ShippedArtifact, ship
from cambrian.commands.configuration import RANGES, check_range
from cambrian.commands.images.given import GivenImages
from cambrian.commands.run.classify import classify, images_of, logit_names
from cambrian.sharding import UsageError

_RESULTS = ("predicted", "probability", "top5", "error")
_PREALLOCATED = 0.75  # of a GPU's memory, by JAX's default


class Classifier:
    """Classifies batches of a Ray Dataset of images, in an actor that loads the artefact once.

        dataset = ray.data.read_binary_files("s3://bucket/folder", include_paths=True)
        dataset.map_batches(
            cambrian.ray.Classifier,
            fn_constructor_kwargs={"artifact": "artefact", "column": "bytes"},
            batch_size=256,
            concurrency=4,
            num_gpus=0.5,
        )

    A call takes a batch of any size as columns, {name: values (N,)}, and launches it in batches of the executable. It
    returns the batch without the images and with the columns `predicted` (a label), `probability`, `top5` (the five
    most probable logits, each with `name`, `index` and `probability`) and `error`. An image that can't be read has its
    error there, and no prediction.

    Args:
      artifact: directory of an artefact that every node sees, or one that `cambrian.ray.ship` put into Ray's object
        store.
      column: of the images: bytes of JPEG or PNG files, structs that hold these as `bytes`, or pixels (H, W, 3) uint8.
      threads: number of host threads that decode, launch and rank.
      signing_key: the user's key file; None for the default one. Without it the portable program is compiled.

    Raises:
      UsageError, DamagedArtifact, OutOfMemory, ParityError: as `cambrian.load`.
    """

    def __init__(
        self,
        artifact: str | os.PathLike | ShippedArtifact,
        *,
        column: str = "image",
        threads: int = 2,
        signing_key: str | os.PathLike | None = None,
    ):
        check_range("threads", threads, *RANGES["threads"])
        if not isinstance(artifact, ShippedArtifact):
            artifact = ship(artifact, through_object_store=False)
        share_gpu()
        self._executable = artifact.load(signing_key)
        images_of(self._executable, GivenImages((), ()))  # refuses what isn't an image classifier
        self._column, self._threads = column, threads

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Classifies a batch.

        Raises:
          UsageError: if it has no such column of images.
        """
        if self._column not in batch:
            raise UsageError(f"each batch must have the column {self._column!r}, got {', '.join(batch)}")
        values = batch[self._column]
        names = [str(index) for index in range(len(values))]
        images, _ = images_of(self._executable, GivenImages(names, values))
        batches = classify(self._executable, images, threads=self._threads, skip_bad_images=True)
        rows = rows_of(batches, names, [None] * len(names), (), logit_names(self._executable, images))
        others = {name: column for name, column in batch.items() if name != self._column}
        # Of values that are all null Ray Data would make a column that no other block's can be appended to.
        return others | {name: pa.array(rows[name], SCHEMA.field(name).type) for name in _RESULTS}


def share_gpu() -> None:
    """Limits JAX to this actor's fraction of a GPU, as Ray assigned it, before JAX starts."""
    import ray  # pyright: ignore[reportMissingImports]

    if ray.is_initialized():
        fraction = ray.get_runtime_context().get_assigned_resources().get("GPU", 0)
        if 0 < fraction < 1:
            os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{_PREALLOCATED * fraction:.3f}")
