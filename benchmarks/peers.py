"""Compares ResNet101 in Cambrian, in CPU inference engines and in stock JAX: images/s and latency as ratios.

    pip install -e '.[bench]'
    python benchmarks/peers.py --stem cifar

The sides are OpenVINO (latency and throughput mode), ONNX Runtime (not in bfloat16), PyTorch (eager and compiled), the
Flax NNX model under `jax.jit`, and ours (one device, called or streamed to by two host threads, and two devices on the
model axis). All have the same random weights and images. The other sides get normalised images in their preferred
layout, prepared outside the timing; ours gets uint8 images and normalises them within it. Ours keeps the cores from
sleeping during launches, where permitted, so the script does so for all sides. For int8 each side quantises the network
by its own defaults, calibrated on the images that it computes: OpenVINO by NNCF, ONNX Runtime by `quantize_static`.

Ours measures what decides its plan, as each build does (docs/plan.md), and keeps that for later runs.

Each combination of side, mode and precision is a process, which is idle except during its own measurements. It compiles
for each batch size, and its logits are compared with a float64 reference; a side that fails is reported and left out.
The sides are measured in interleaved rounds: in each, every side is warmed up and measured at every batch size. A ratio
compares images/s of ours, at its best mode and batch size, with the other side at its best batch size: the median over
the rounds, with minimum and maximum. The last columns are for batch size 1, one launch after another. The measurements
are written as JSON after every round.
"""

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from absl import app, flags, logging

from benchmarks.machine import circumstances
from benchmarks.sides import PRECISIONS, SIDES
from benchmarks.sides.problem import STEMS, resnet101
from benchmarks.sides.race import Contender, start
from benchmarks.sides.reference import reference_logits
from benchmarks.sides.result import Row, result_table, summarise
from benchmarks.tables import print_table
from cambrian.commands.model import default_model
from cambrian.models.resnet.architecture import IMAGE_CHANNELS
from cambrian.sharding.host import host, low_cpu_latency

_STEM = flags.DEFINE_enum("stem", "cifar", STEMS, "Stem of the ResNet.")
_SIZE = flags.DEFINE_integer("size", 0, "Height and width of the images in pixels; 0: that of the stem's preset.")
_PRECISION = flags.DEFINE_list("precision", list(PRECISIONS), "Precisions, measured one after another.")
_BATCHES = flags.DEFINE_list("batches", ["4", "8", "16", "32", "64"], "Batch sizes to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of interleaved rounds.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 2.0, "Target duration of each measurement.")
_SIDES = flags.DEFINE_list("sides", list(SIDES), "Sides to measure.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file; default: a new one under runs/.")
for _name, _known in (("precision", PRECISIONS), ("sides", SIDES)):
    flags.register_validator(
        _name, lambda given, known=_known: bool(given) and set(given) <= set(known), f"known are {', '.join(_known)}"
    )


def measure(_: list[str]) -> None:
    host.permit("cpu_latency")
    batches = sorted({int(batch) for batch in _BATCHES.value})
    size = _SIZE.value or default_model(_STEM.value).preprocessing.size[0]
    output = Path(_OUTPUT.value or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-peers.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    report = circumstances(side.package for side in SIDES.values())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        print("computing the reference", flush=True)
        write_problem(Path(folder), size, max(batches))
        for precision in _PRECISION.value:
            with low_cpu_latency("cpu"), start(_SIDES.value, precision, _STEM.value, Path(folder)) as race:
                for batch in sorted({1, *batches}):
                    print(f"building {precision}, batch {batch}", flush=True)
                    race.each(Contender.build, batch)
                for number in range(_ROUNDS.value):
                    for batch in batches:
                        race.each(Contender.measure_throughput, batch, _SECONDS.value)
                    race.each(Contender.measure_latency, _SECONDS.value)
                    race.turn()
                    results = [contender.result for contender in race.contenders]
                    report[precision] = {
                        "failures": race.failures,
                        "results": [dataclasses.asdict(result) for result in results],
                        "rows": [dataclasses.asdict(row) for row in summarise(results)],
                    }
                    output.write_text(json.dumps(report, indent=1))
                    print(f"{precision}: round {number + 1} of {_ROUNDS.value} done", flush=True)
            rows += summarise(results)
    title = f"ResNet101, {_STEM.value} stem, {size}×{size}, {_ROUNDS.value} rounds, {report['cpu']}, {report['date']}"
    print_table(result_table(title, rows))
    print(f"all measurements in {output}")


def write_problem(folder: Path, size: int, num_images: int) -> None:
    """Writes the files that the processes of all sides read: the images, and their logits in float64."""
    images = np.random.default_rng(0).integers(0, 256, (num_images, size, size, IMAGE_CHANNELS), np.uint8)
    np.save(folder / "images.npy", images)
    np.save(folder / "reference.npy", reference_logits(resnet101(_STEM.value, images), num_images))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(measure)
