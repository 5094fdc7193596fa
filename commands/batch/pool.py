"""The pool of workers: parts in, finished parts out, by Ray Data."""

import pickle
from collections.abc import Iterator, Sequence

from cambrian.commands.batch.cluster import WorkerShare
from cambrian.commands.batch.parts import Part
from cambrian.commands.batch.shipped import ShippedArtifact
from cambrian.commands.batch.worker import Finished, Worker
from cambrian.commands.images import ModelImages


def classify_parts(
    parts: Sequence[Part],
    artifact: ShippedArtifact,
    images: ModelImages,
    *,
    workers: int,
    threads: int,
    share: WorkerShare,
    signing_key: str = "",
) -> Iterator[Finished]:
    """Yields each part once, as soon as a worker has finished it, in any order.

    Ray Data restarts workers that died and gives their tasks to others, without limit; it raises when nothing has
    finished for half an hour.

    Args:
      images: how the images are preprocessed and numbered; each part brings its own source.
      workers: number of actors.
      threads: number of parts that each classifies at a time.
      share: what each has of its machine.
      signing_key: the user's key file; empty for the default one.

    Raises:
      The first exception of a worker.
    """
    import ray.data  # pyright: ignore[reportMissingImports]

    rows = [{"part": pickle.dumps(part)} for part in parts]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            size=workers,
            max_concurrent_calls_per_actor=threads,
            enable_true_multi_threading=True,
            # One part waits, so that a worker doesn't; more could run at another worker.
            max_tasks_in_flight_per_actor=threads + 1,
        ),
        num_cpus=share.num_cpus,
        num_gpus=share.num_gpus,
        fn_constructor_args=(artifact, images, share.cores, signing_key),
    )
    missing = {part.name for part in parts}
    for row in dataset.iter_rows():
        finished = pickle.loads(row["finished"])
        if isinstance(finished, Exception):
            raise finished
        if finished.name in missing:  # else it came twice
            missing.remove(finished.name)
            yield finished
