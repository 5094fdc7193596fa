"""The whole engine against a bare loop over its own executable: images/s as a ratio, interleaved.

    python benchmarks/engine_overhead.py

The engine draws synthetic images, transfers them, launches from two host threads, fetches logits, finds the top five
and writes predictions.csv; the bare loop launches on one prepared device array and waits for each result.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from absl import app, flags

import main
from engine.cache import source_digest
from engine.classify import Tally, classify
from engine.configuration import Configuration
from engine.executable import Executable
from engine.flags import DEFAULT_CONFIG, load_preset
from engine.inputs import open_source
from engine.metrics import Timeline
from engine.obtain import obtain
from sharding import MeshShape

_MESH = flags.DEFINE_string("only_mesh", "4x8", "Mesh to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Interleaved rounds.")
_LAUNCHES = flags.DEFINE_integer("launches", 6, "Launches in each round and of each side.")


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
    for _ in range(launches):
        executable.compiled(executable.params, inputs).block_until_ready()
    return launches * executable.batch_size / (time.perf_counter() - start)


def measure(_: list[str]) -> None:
    folder = Path(main.__file__).parent
    configuration = Configuration(model=load_preset(DEFAULT_CONFIG).model, mesh=MeshShape.parse(_MESH.value))
    digest = source_digest(folder / "models", folder / "sharding")
    executable = obtain(configuration, main.build_program, digest).executable
    ratios = []
    with tempfile.TemporaryDirectory() as directory:
        for number in range(_ROUNDS.value):
            bare = bare_images_per_second(executable, _LAUNCHES.value)
            engine = engine_images_per_second(executable, _LAUNCHES.value * executable.batch_size, Path(directory))
            ratios.append(engine / bare)
            print(f"round {number}: engine {engine:.1f}, bare loop {bare:.1f} images/s, ratio {ratios[-1]:.3f}")
    print(f"mesh {_MESH.value}, batch {executable.batch_size}: median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    app.run(measure)
