"""Measures scaling over devices, batch size and model axis: images/s relative to the best unsharded setting.

    pip install -e '.[bench]'
    python benchmarks/scaling.py

The settings are 1 to 32 devices on the data axis; 1 to 256 images per launch, unsharded and on mesh 4x8; and 32 devices
with 1 to 32 of them on the model axis, with partitions auto and intra_sample. They are measured in interleaved rounds,
each time by an end-to-end run of main.py on synthetic images, with an artefact built in a first pass. A setting that
fails is reported and left out. Writes scaling.json after every round, and scaling.png and scaling.svg at the end.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from absl import app, flags, logging
from rich.table import Table

from benchmarks.curves import Curve, Panel, draw
from benchmarks.machine import circumstances
from benchmarks.ratios import Ratio, best
from benchmarks.tables import make_table, print_table
from cambrian.commands.config_file import DEFAULT_CONFIG
from cambrian.sharding import MeshShape

_CONFIG = flags.DEFINE_string("config", DEFAULT_CONFIG, "Config file of main.py.")
_PRECISION = flags.DEFINE_string("precision", "auto", "Precision of main.py.")
_BATCH = flags.DEFINE_integer("batch", 64, "Images per launch, where it doesn't vary; a multiple of 32.")
_IMAGES = flags.DEFINE_integer("images", 256, "Images per measurement, but at least two launches.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Number of interleaved rounds.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "", "Folder; default: a new one under runs/.")

_MAIN = Path(__file__).parent.parent / "main.py"
_KEPT = (
    "precision",
    "num_images",
    "images_per_second",
    "device_images_per_second",
    "latency_ms_p50",
    "intra_sample_flops_fraction",
    "parity_max_relative_error",
    "notes",
)
NUM_DEVICES = 32
MAX_BATCH = 256
UNSHARDED = MeshShape(1, 1)
DEFAULT_MESH = MeshShape(4, 8)


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A configuration of main.py, apart from precision and model."""

    mesh: MeshShape
    batch_size: int
    partition: str = "auto"

    def __str__(self) -> str:
        return f"mesh {self.mesh}, batch {self.batch_size}, {self.partition}"


Runs = dict[Setting, list[dict[str, Any]]]  # the kept part of each round's report


def measure(_: list[str]) -> None:
    output = Path(_OUTPUT.value or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-scaling")
    output.mkdir(parents=True, exist_ok=True)
    settings = all_settings(_BATCH.value)
    report = circumstances() | {"failures": []}
    with tempfile.TemporaryDirectory() as folder:
        runs: Runs = {}
        for number, setting in enumerate(settings, start=1):
            print(f"building {number} of {len(settings)}: {setting}", flush=True)
            if succeeds("compile", setting, Path(folder), report["failures"]):
                runs[setting] = []
        for number in range(_ROUNDS.value):
            for setting in list(runs)[:: -1 if number % 2 else 1]:
                if succeeds("run", setting, Path(folder), report["failures"]):
                    ran = json.loads((Path(folder) / "report.json").read_text())
                    runs[setting].append({key: ran[key] for key in _KEPT})
                else:
                    del runs[setting]
            report["settings"] = [
                {
                    "mesh": str(setting.mesh),
                    "batch_size": setting.batch_size,
                    "partition": setting.partition,
                    "runs": ran,
                }
                for setting, ran in runs.items()
            ]
            (output / "scaling.json").write_text(json.dumps(report, indent=1))
            print(f"round {number + 1} of {_ROUNDS.value} done", flush=True)
    rates = {setting: [ran["images_per_second"] for ran in rounds] for setting, rounds in runs.items()}
    unsharded = {setting: rounds for setting, rounds in rates.items() if setting.mesh == UNSHARDED}
    if not unsharded:
        sys.exit("error: expected an unsharded setting that runs, to compare with, got none")
    best_unsharded = unsharded[best(unsharded)]
    precision = next(iter(runs.values()))[0]["precision"]
    rounds = "one round" if _ROUNDS.value == 1 else f"{_ROUNDS.value} rounds"
    title = f"{_CONFIG.value}, {precision}, {rounds}, {report['cpu']}, {report['date']}"
    print_table(ratio_table(title, runs, best_unsharded))
    draw(
        panels(rates, _BATCH.value),
        label="images/s",
        level=statistics.median(best_unsharded),
        level_name=f"best unsharded (batch {best(unsharded).batch_size})",
        title=title,
        stem=output / "scaling",
    )
    print(f"measurements and curves in {output}")


def all_settings(batch_size: int) -> list[Setting]:
    """Returns the settings of all curves, each once."""
    curves = (
        over_batch(UNSHARDED),
        over_batch(DEFAULT_MESH),
        over_devices(batch_size),
        over_model_axis(batch_size, "auto"),
        over_model_axis(batch_size, "intra_sample"),
    )
    return list(dict.fromkeys(setting for curve in curves for setting in curve))


def over_devices(batch_size: int) -> list[Setting]:
    """Returns settings with 1 to 32 devices on the data axis."""
    return [Setting(MeshShape(1, count), batch_size) for count in _doubled(1, NUM_DEVICES)]


def over_batch(mesh: MeshShape) -> list[Setting]:
    """Returns settings from one image per data group to 256 images per launch."""
    return [Setting(mesh, batch_size) for batch_size in _doubled(mesh.data, MAX_BATCH)]


def over_model_axis(batch_size: int, partition: str) -> list[Setting]:
    """Returns settings with 1 to 32 of 32 devices on the model axis; from 2 on for intra_sample."""
    least = 2 if partition == "intra_sample" else 1
    meshes = [MeshShape(model, NUM_DEVICES // model) for model in _doubled(least, NUM_DEVICES)]
    return [Setting(mesh, batch_size, partition) for mesh in meshes]


def _doubled(first: int, last: int) -> list[int]:
    return [first * 2**power for power in range((last // first).bit_length())]


def succeeds(mode: str, setting: Setting, folder: Path, failures: list[str]) -> bool:
    """Runs main.py in this mode and returns whether it succeeded; reports the reason of a failure."""
    ended = subprocess.run(
        [sys.executable, str(_MAIN), *arguments(mode, setting, folder)], capture_output=True, text=True
    )
    if ended.returncode:
        last_words = ended.stderr.strip().rpartition("\n")[2]
        failures.append(f"{setting} left out at {mode}: {last_words}")
        print(failures[-1], flush=True)
    return ended.returncode == 0


def arguments(mode: str, setting: Setting, folder: Path) -> list[str]:
    """Returns the arguments of main.py that build a setting's artefact in `folder`, or run it."""
    values = {
        "mode": mode,
        "config": _CONFIG.value,
        "mesh": setting.mesh,
        "batch_size": setting.batch_size,
        "partition": setting.partition,
        "precision": _PRECISION.value,
        "weights": "random",
        "artifact_dir": folder / "artifacts",
    }
    if mode == "run":
        num_images = max(_IMAGES.value, 2 * setting.batch_size)
        values |= {"data": "synthetic", "num_images": num_images, "output_dir": folder}
    return [f"--{name}={value}" for name, value in values.items()]


def ratio_table(title: str, runs: Runs, best_unsharded: Sequence[float]) -> Table:
    numbers = ("batch", "images/s", "÷ best unsharded", "batch ms", "cut within samples")
    table = make_table(title, ("mesh", "partition"), numbers)
    for setting, rounds in runs.items():
        rates = [ran["images_per_second"] for ran in rounds]
        table.add_row(
            str(setting.mesh),
            setting.partition,
            str(setting.batch_size),
            f"{statistics.median(rates):.1f}",
            str(Ratio.of(rates, best_unsharded)),
            f"{statistics.median(ran['latency_ms_p50'] for ran in rounds):.0f}",
            f"{rounds[0]['intra_sample_flops_fraction']:.0%}",
        )
    return table


def panels(rates: Mapping[Setting, Sequence[float]], batch: int) -> list[Panel]:
    def curve(name: str, settings: list[Setting], place: Callable[[Setting], int]) -> Curve:
        return Curve(name, {place(setting): rates[setting] for setting in settings if setting in rates})

    return [
        Panel(
            "devices, all on the data axis",
            [curve(f"batch {batch}", over_devices(batch), lambda setting: setting.mesh.data)],
        ),
        Panel(
            "images per launch",
            [
                curve(f"mesh {mesh}", over_batch(mesh), lambda setting: setting.batch_size)
                for mesh in (UNSHARDED, DEFAULT_MESH)
            ],
        ),
        Panel(
            f"mesh of {NUM_DEVICES} devices, model × data",
            [
                curve(partition, over_model_axis(batch, partition), lambda setting: setting.mesh.model)
                for partition in ("auto", "intra_sample")
            ],
            tick=lambda model: f"{model}x{NUM_DEVICES // model}",
        ),
    ]


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(measure)
