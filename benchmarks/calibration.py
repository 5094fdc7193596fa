"""Compares plans from a few seconds of calibration with plans from this machine's complete cost table, as images/s.

    python benchmarks/calibration.py --stem cifar --mesh 1x1

The complete table is the shipped one, if it was measured on this kind of machine, or the one that `--mode plan --tune`
has written. The calibrated sides start as on a machine of which there is no table, with an empty cache folder and the
shipped tables of other vendors' CPUs alone. Then these pass for tables measured with other instruction sets, too. Each
side chooses precision, batch size and plan. All run ResNet101 with random weights on this mesh from two host threads,
in interleaved rounds; a ratio is the median over the rounds, with minimum and maximum.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh

from benchmarks.machine import circumstances
from benchmarks.ratios import Ratio
from benchmarks.sides.problem import STEMS, Problem, resnet101
from benchmarks.tables import make_table, print_table
from cambrian import engine, models
from cambrian.commands.configuration import CALIBRATE_S, PRECISIONS, batch_sizes
from cambrian.commands.model import default_model
from cambrian.commands.program.resnet import precisions_of
from cambrian.engine.runtime.memory import device_memory_bytes
from cambrian.models.costs import files
from cambrian.models.costs.machine import SHIPPED, Machine, this_machine
from cambrian.models.execution.choose_setting import Chosen
from cambrian.models.resnet.architecture import IMAGE_CHANNELS
from cambrian.sharding import MeshShape, UsageError, make_mesh, mesh_shape
from cambrian.sharding.host import acquire_devices, host, launches_at_once, low_cpu_latency, return_freed_memory

_STEM = flags.DEFINE_enum("stem", "cifar", STEMS, "Stem of the ResNet.")
_MESH = flags.DEFINE_string("mesh", "1x1", "MODELxDATA.")
_PRECISION = flags.DEFINE_enum("precision", "auto", PRECISIONS, "Precision; auto: each side's choice.")
_BATCH = flags.DEFINE_integer("batch", 0, "Images per launch; 0: each side's choice.")
_SECONDS = flags.DEFINE_float("calibrate_s", CALIBRATE_S, "Seconds of calibration.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of interleaved rounds.", lower_bound=1)
_RUN_S = flags.DEFINE_float("seconds", 4.0, "Least duration of each measurement, which is at least two launches long.")

_THREADS = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """A planned network, compiled.

    Attributes:
      chosen: its plan, precision and batch size.
      taken_s: seconds that choosing them took.
    """

    name: str
    chosen: Chosen
    taken_s: float
    executable: engine.Executable
    images: np.ndarray
    rates: list[float] = dataclasses.field(default_factory=list)

    def measure(self, seconds: float) -> None:
        """Streams batches for so long, after a launch of each thread, and keeps the images/s."""

        def rate(launches: int) -> float:
            start = time.perf_counter()
            list(self.executable.stream(itertools.repeat(self.images, launches), _THREADS))
            return launches * len(self.images) / (time.perf_counter() - start)

        first = rate(_THREADS)
        self.rates.append(rate(max(_THREADS, round(first * seconds / len(self.images)))))


def measure(_: list[str]) -> None:
    shape = MeshShape.parse(_MESH.value)
    at_once = launches_at_once(shape.num_devices, _THREADS, _PRECISION.value)
    host.permit("cpu_latency", "malloc")
    return_freed_memory(shape.num_devices)
    devices, _notes = acquire_devices(shape.num_devices, "cpu", at_once)
    mesh = make_mesh(shape, devices)
    precisions = precisions_of(_PRECISION.value, "cpu")
    if not models.current_cost_table("cpu").is_complete(precisions):
        raise UsageError(
            f"a cost table of this machine must be complete in {' and '.join(precisions)}: run main.py --mode plan "
            "--tune --precision … first"
        )
    size = default_model(_STEM.value).preprocessing.size[0]
    images = np.random.default_rng(0).integers(
        0, 256, (_BATCH.value or max(batch_sizes(shape, "cpu")), size, size, IMAGE_CHANNELS), np.uint8
    )
    problem = resnet101(_STEM.value, images)
    sides = [make_side("complete table", problem, mesh, at_once)]
    for difference in ("vendor", "vendor and instructions"):
        with as_on_an_unknown_machine(other_instructions="instructions" in difference):
            sides.append(make_side(f"calibrated from a table of another {difference}", problem, mesh, at_once))
    with low_cpu_latency("cpu"):
        for number in range(_ROUNDS.value):
            for side in sides[:: -1 if number % 2 else 1]:
                side.measure(_RUN_S.value)
            print(f"round {number + 1} of {_ROUNDS.value} done", flush=True)
    facts = circumstances()
    title = f"ResNet101, {_STEM.value} stem, {size}×{size}, mesh {shape}, {facts['cpu']}, {facts['date']}"
    table = make_table(title, ("plan", "precision"), ("batch", "chosen in s", "images/s", "÷ complete"))
    for side in sides:
        table.add_row(
            side.name,
            side.chosen.setting.precision,
            str(side.chosen.setting.batch_size),
            f"{side.taken_s:.1f}",
            f"{statistics.median(side.rates):.1f}",
            str(Ratio.of(side.rates, sides[0].rates)),
        )
    print_table(table)


def make_side(name: str, problem: Problem, mesh: Mesh, at_once: int) -> Side:
    start, shape = time.perf_counter(), mesh_shape(mesh)
    memory_bytes = device_memory_bytes(list(mesh.devices.flat))
    plans = models.Plans(problem.network, shape, models.current_cost_table("cpu"), "auto", at_once, memory_bytes)
    sizes = [_BATCH.value] if _BATCH.value else batch_sizes(shape, "cpu")
    chosen = models.choose_setting(plans, precisions_of(_PRECISION.value, "cpu"), sizes, mesh, _SECONDS.value)
    taken_s = time.perf_counter() - start
    print(f"{name}: {chosen.setting} in {taken_s:.1f} s; {' '.join(chosen.notes)}", flush=True)
    program = problem.program(chosen.plan, mesh, chosen.setting.batch_size, chosen.setting.precision)
    executable = dataclasses.replace(engine.compile_program(program), program=None)  # without the host's weights
    return Side(name, chosen, taken_s, executable, problem.images[: chosen.setting.batch_size])


@contextlib.contextmanager
def as_on_an_unknown_machine(other_instructions: bool) -> Iterator[None]:
    """Hides the user's cost tables, and the shipped ones but for those of other vendors.

    Args:
      other_instructions: whether these pass for measured without instruction sets that this CPU has.
    """
    with tempfile.TemporaryDirectory() as folder:
        shown = Path(folder) / "shipped"
        shown.mkdir()
        for path in SHIPPED.glob("*.jsonl"):
            header, *lines = path.read_text().splitlines()
            machine = Machine.from_json(json.loads(header)["machine"])
            if machine.vendor != this_machine("cpu").vendor:
                if other_instructions:
                    machine = dataclasses.replace(machine, instruction_sets=())
                header = json.dumps({"machine": dataclasses.asdict(machine)})
                (shown / path.name).write_text("\n".join([header, *lines]) + "\n")
        with mock.patch.dict(os.environ, XDG_CACHE_HOME=folder), mock.patch.object(files, "SHIPPED", shown):
            yield


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(measure)
