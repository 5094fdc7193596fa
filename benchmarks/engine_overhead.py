"""Compares the whole engine with a bare loop over its executable: images/s as a ratio, interleaved.

    python benchmarks/engine_overhead.py

The engine draws synthetic images, transfers them, launches from two host threads, fetches logits, ranks the top five
and tallies predictions. The bare loop launches on one prepared device array, with two launches in flight.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from absl import app, flags, logging

from cambrian.commands.configuration import Configuration
from cambrian.commands.executables import make_executable
from cambrian.commands.images import open_source
from cambrian.commands.model import default_model
from cambrian.commands.run.classify import Tally, classify, images_of
from cambrian.engine.runtime.executable import Executable
from cambrian.engine.runtime.metrics import Timeline
from cambrian.sharding import MeshShape

_MESH = flags.DEFINE_string("bench_mesh", "", "Mesh to measure; default: 1x2 and 4x8.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of interleaved rounds.")
_IMAGES = flags.DEFINE_integer("images", 320, "Images per round and side, rounded to whole launches, at least two.")


def engine_images_per_second(executable: Executable, num_images: int) -> float:
    images, _ = images_of(executable, open_source("synthetic", num_images=num_images)[0])
    timeline, tally = Timeline(), Tally.of(executable, images)
    for batch in classify(executable, images, threads=2, timeline=timeline):
        tally.add(batch)
    images_per_second = timeline.summary().images_per_second
    assert images_per_second is not None
    return images_per_second


def bare_images_per_second(executable: Executable, launches: int) -> float:
    images = np.random.default_rng(0).integers(0, 256, executable.input_spec.shape, np.uint8)
    inputs = executable.put(images).block_until_ready()
    start = time.perf_counter()
    before = executable.compiled(executable.params, inputs)
    for _ in range(launches - 1):  # enqueues one launch while the previous one executes
        after = executable.compiled(executable.params, inputs)
        before.block_until_ready()
        before = after
    before.block_until_ready()
    return launches * executable.batch_size / (time.perf_counter() - start)


def measure(_: list[str]) -> None:
    if not _MESH.value:  # the number of virtual devices is fixed per process
        for mesh in ("1x2", "4x8"):
            subprocess.run([sys.executable, __file__, f"--bench_mesh={mesh}", *sys.argv[1:]], check=True)
        return
    configuration = Configuration(model=default_model("cifar"), mesh=MeshShape.parse(_MESH.value))
    executable = make_executable(configuration).executable
    ratios, launches = [], max(2, _IMAGES.value // executable.batch_size)
    sides = {
        "bare loop": lambda: bare_images_per_second(executable, launches),
        "engine": lambda: engine_images_per_second(executable, launches * executable.batch_size),
    }
    for number in range(_ROUNDS.value):
        order = list(sides) if number % 2 else list(reversed(sides))
        measured = {side: sides[side]() for side in order}
        ratios.append(measured["engine"] / measured["bare loop"])
        print(", ".join(f"{side} {measured[side]:.1f} images/s" for side in sides), f"ratio {ratios[-1]:.3f}")
    print(f"mesh {_MESH.value}, batch {executable.batch_size}: median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(measure)
