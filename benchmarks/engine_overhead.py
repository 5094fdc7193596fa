"""The whole engine against a bare loop over its own executable: images/s as a ratio, interleaved.

    python benchmarks/engine_overhead.py

The engine draws synthetic images, transfers them, launches from two host threads, fetches logits, finds the top five
and writes predictions.csv; the bare loop launches on one prepared device array, two launches in flight.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from absl import app, flags, logging

from commands.build import build_program, code_digest
from engine.classify import Tally, classify
from engine.configuration import Configuration
from engine.executable import Executable
from engine.flags import DEFAULT_CONFIG, load_preset
from engine.inputs import open_source
from engine.metrics import Timeline
from engine.obtain import obtain
from sharding import MeshShape

_MESH = flags.DEFINE_string("bench_mesh", "", "Mesh to measure; empty: 1x2 and 4x8.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Interleaved rounds.")
_IMAGES = flags.DEFINE_integer("images", 320, "Images in each round and of each side.")


def engine_images_per_second(executable: Executable, num_images: int, directory: Path) -> float:
    size = executable.input_spec.shape[1]
    source, _ = open_source(
        "synthetic", split="test", num_images=num_images, image_size=size, crop_fraction=1.0, labels=(), seed=0
    )
    timeline = Timeline()
    classify(
        executable,
        source,
        directory / "predictions.csv",
        Tally(),
        timeline,
        threads=2,
        skip_bad_images=False,
        on_first_result=lambda: None,
    )
    images_per_second = timeline.summary().images_per_second
    assert images_per_second is not None
    return images_per_second


def bare_images_per_second(executable: Executable, launches: int) -> float:
    images = np.random.default_rng(0).integers(0, 256, executable.input_spec.shape, np.uint8)
    inputs = executable.put(images).block_until_ready()
    start = time.perf_counter()
    before = executable.compiled(executable.params, inputs)
    for _ in range(launches - 1):  # one is enqueued while the one before executes
        after = executable.compiled(executable.params, inputs)
        before.block_until_ready()
        before = after
    before.block_until_ready()
    return launches * executable.batch_size / (time.perf_counter() - start)


def measure(_: list[str]) -> None:
    if not _MESH.value:  # a process has one number of virtual devices
        for mesh in ("1x2", "4x8"):
            subprocess.run([sys.executable, __file__, f"--bench_mesh={mesh}", *sys.argv[1:]], check=True)
        return
    configuration = Configuration(model=load_preset(DEFAULT_CONFIG).model, mesh=MeshShape.parse(_MESH.value))
    executable = obtain(configuration, build_program, code_digest).executable
    ratios = []
    with tempfile.TemporaryDirectory() as directory:
        sides = {
            "bare loop": lambda: bare_images_per_second(executable, _IMAGES.value // executable.batch_size),
            "engine": lambda: engine_images_per_second(executable, _IMAGES.value, Path(directory)),
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
