"""How batch jobs scale with the number of workers: a stand-in for the executable sleeps as long as a measured launch.

    python benchmarks/ray_scaling.py --launch_ms 800 --batch_size 64 --workers 1,2,4,8,16,32,64

Everything else is a job's own: Ray's scheduling, its tasks and results, the workers' processes, and the Parquet files,
here all on one machine. A worker launches once at a time, as a device does, and reads no pictures; all begin together.
Efficiency is the rate of all workers over that of as many devices that never wait. `--launch_ms 0` shows how many parts
a second Ray and the job's own process handle. Needs the extra `ray`.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from absl import app, flags

from benchmarks.sleeping import SIZE, BlankImages, SleepingArtifact
from benchmarks.tables import make_table, print_table
from cambrian.commands.batch.cluster import WorkerShare, require_ray
from cambrian.commands.images import ModelImages
from cambrian.commands.images.given import GivenImages
from cambrian.sharding import Preprocessing
from cambrian.sharding.host.files import replace_file

_LAUNCH_MS = flags.DEFINE_float("launch_ms", 800, "Milliseconds of a launch.", lower_bound=0)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images of a launch.", lower_bound=1)
_BATCHES = flags.DEFINE_integer("batches", 4, "Launches of a part.", lower_bound=1)
_PARTS = flags.DEFINE_integer("parts", 8, "Parts for each worker.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", 2, "Parts that a worker has at a time.", lower_bound=1)
_WORKERS = flags.DEFINE_list("workers", ["1", "2", "4", "8", "16", "32", "64"], "Numbers of workers.")


def measure(_: list[str]) -> None:
    require_ray()
    import ray  # pyright: ignore[reportMissingImports]

    counts = [int(count) for count in _WORKERS.value]
    ray.init(
        address="local",
        num_cpus=max(counts),
        object_store_memory=512 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    table = make_table("", (), ("workers", "images/s", "efficiency", "parts/s"))
    try:
        for workers in counts:
            num_images, num_parts, wall_s = _run(workers)
            ideal = workers * _BATCH_SIZE.value / (_LAUNCH_MS.value / 1e3) if _LAUNCH_MS.value else float("nan")
            rate = num_images / wall_s
            table.add_row(str(workers), f"{rate:.0f}", f"{rate / ideal:.3f}", f"{num_parts / wall_s:.1f}")
    finally:
        ray.shutdown()
    print_table(table)


def _run(workers: int) -> tuple[int, int, float]:
    """Returns images, parts and seconds of a job, from the first part that a worker begins to the last file written."""
    from cambrian.commands.batch.parts import Part
    from cambrian.commands.batch.pool import classify_parts

    size = _BATCHES.value * _BATCH_SIZE.value
    parts = [Part(f"{number:06}", BlankImages(size)) for number in range(workers * _PARTS.value)]  # pyright: ignore[reportArgumentType]
    images = ModelImages(GivenImages((), ()), Preprocessing(SIZE, SIZE), None, ())
    began_s = float("inf")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as meeting:
        artifact = SleepingArtifact(_LAUNCH_MS.value / 1e3, _BATCH_SIZE.value, workers, meeting)
        for finished in classify_parts(
            parts,
            artifact,  # pyright: ignore[reportArgumentType]
            images,
            workers=workers,
            threads=_THREADS.value,
            share=WorkerShare(1, 0, 0),
        ):
            began_s = min(began_s, finished.started_s)
            replace_file(Path(folder) / finished.name, finished.content)
        return len(parts) * size, len(parts), time.time() - began_s


if __name__ == "__main__":
    app.run(measure)
