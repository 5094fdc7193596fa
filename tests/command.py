"""Runs main.py with cache, configuration and data folders of its own: as a user does, or within the tests' process."""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from absl.flags import FlagValues
from PIL import Image
from safetensors.numpy import save_file

from cambrian.commands import cli
from cambrian.commands.flags import define_flags
from cambrian.models.checkpoints.naming import torchvision_name
from cambrian.models.costs.files import line_of, read_table
from cambrian.models.costs.layer_case import LayerCase
from cambrian.models.costs.machine import SHIPPED, own_table_path, this_machine
from cambrian.models.lowerings import LOWERINGS
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.variables import random_variables

ROOT = Path(__file__).parents[1]
LABELS = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")
TINY = Architecture.resnet(18, "cifar", len(LABELS))
SMALL = Architecture("cifar", (1, 1), False, len(LABELS), width=8)  # builds faster, but no configuration names it
TINY_CONFIG = f"""
from cambrian.commands.configuration import ModelConfig, Preset
from cambrian.sharding import Preprocessing

CONFIG = Preset(
    ModelConfig(
        depth=18, stem="cifar", num_classes=10, labels={LABELS},
        preprocessing=Preprocessing((8, 8), (8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    )
)
"""
# Lines on stderr besides an error.
REMARKS = ("note: ", "building the executable", "its oneDNN layers ", "finished results are in ", "the report is in ")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the command ended, and what it said."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def notes(self) -> list[str]:
        return [line.removeprefix("note: ") for line in self.stderr.splitlines() if line.startswith("note: ")]

    @property
    def error(self) -> str:
        """The one line with which the command says what was wrong."""
        assert "Traceback" not in self.stderr, self.stderr
        *others, last = self.stderr.splitlines()
        assert last.startswith("error: ") and all(line.startswith(REMARKS) for line in others), self.stderr
        return last.removeprefix("error: ")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that ended well: what it said and what it wrote."""

    outcome: Outcome
    output_dir: Path

    @property
    def report(self) -> dict[str, Any]:
        return read_report(self.output_dir)

    @property
    def predictions(self) -> list[dict[str, str]]:
        return read_predictions(self.output_dir)


class Command:
    """main.py with `home` for everything it keeps between runs, where `config` names the model TINY."""

    def __init__(self, home: Path):
        self.home = home
        self.config = home / "tiny.py"
        self.config.write_text(TINY_CONFIG)
        self.environment = os.environ | {
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "TFDS_DATA_DIR": str(home / "data"),
        }
        # An own cost table: plans are the same on every machine, quick to compile, and can be serialized.
        costs = home / "cache" / "cambrian" / "costs" / own_table_path("cpu").name
        costs.parent.mkdir(parents=True, exist_ok=True)
        costs.write_text(costs_of_native_plans())

    @property
    def artifacts(self) -> list[Path]:
        """The artefacts of the default cache."""
        return sorted((self.home / "cache" / "cambrian" / "artifacts").iterdir())

    def start(
        self, *flags: object, script: Sequence[str | Path] = (ROOT / "main.py",), **options: Any
    ) -> subprocess.Popen:
        """Starts the command in `home`; its output goes to pipes unless `options` of Popen say otherwise."""
        return subprocess.Popen(
            [sys.executable, "-W", "error", *script, *map(str, flags)],
            **{
                "cwd": self.home,
                "env": self.environment,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
            }
            | options,
        )

    def __call__(self, *flags: object, **options: Any) -> Outcome:
        with self.start(*flags, **options) as process:
            try:
                stdout, stderr = process.communicate(timeout=120)
            finally:
                process.kill()
        return Outcome(process.returncode, stdout, stderr)

    def run(self, *flags: object, **options: Any) -> Run:
        """Runs it with these flags and a new output folder, to a good end."""
        output_dir = self.home / f"output-{len(list(self.home.glob('output-*')))}"
        outcome = self(*flags, "--output_dir", output_dir, **options)
        assert outcome.exit_code == 0, outcome.stderr
        assert all(line.startswith(REMARKS) for line in outcome.stderr.splitlines()), outcome.stderr
        return Run(outcome, output_dir)

    def run_tiny(self, *flags: object, **options: Any) -> Run:
        """Runs TINY with random weights on a 1x2 mesh, 8 images at a time."""
        return self.run("--config", self.config, "--mesh", "1x2", "--batch_size", "8", *flags, **options)

    def small_flags(self) -> list[str]:
        """Flags of a run of SMALL with given weights, which are written to `home`."""
        weights = write_checkpoint(self.home / "small.safetensors", SMALL)
        return ["--weights", str(weights), "--image_size", "8", "--precision", "float32"]


class CommandHere(Command):
    """The same within this process, without the seconds that another one takes to start."""

    def __call__(self, *flags: object) -> Outcome:
        values = FlagValues()
        define_flags(values)
        with (
            contextlib.chdir(self.home),
            mock.patch.dict(os.environ, self.environment),
            mock.patch.object(cli, "FLAGS", values),
            mock.patch.object(sys, "path", [*sys.path]),
            contextlib.redirect_stdout(io.StringIO()) as stdout,
            contextlib.redirect_stderr(io.StringIO()) as stderr,
        ):
            try:
                exit_code = cli._main(cli._parse_flags([str(ROOT / "main.py"), *map(str, flags)]))
            except SystemExit as end:
                exit_code = end.code
        assert isinstance(exit_code, int)
        return Outcome(exit_code, stdout.getvalue(), stderr.getvalue())


@functools.cache
def costs_of_native_plans() -> str:
    """A cost table's file as it is shipped, but for two kinds of lowerings, which take a thousand times as long.

    These are oneDNN's, which can't be serialized, and those that take XLA seconds to compile.
    """
    avoided = {name for name, lowering in LOWERINGS.items() if lowering.custom_call or "winograd" in name}
    table = read_table(SHIPPED / "amd_epyc.jsonl", "cpu")
    lines = [json.dumps({"machine": dataclasses.asdict(this_machine("cpu"))})]
    lines += [json.dumps({"tuned": precision}) for precision in sorted(table.tuned)]
    for timed, ms in table.times.items():
        lines.append(line_of(timed, ms * 1000 if isinstance(timed, LayerCase) and timed.lowering in avoided else ms))
    return "\n".join(lines) + "\n"


def read_report(output_dir: Path) -> dict[str, Any]:
    return json.loads((output_dir / "report.json").read_text())


def read_predictions(output_dir: Path) -> list[dict[str, str]]:
    with (output_dir / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_checkpoint(path: Path, architecture: Architecture, seed: int = 0) -> Path:
    """Writes random weights as torchvision names and lays them out."""
    to_torch = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    variables = random_variables(architecture, seed)
    tensors = {
        torchvision_name(name): np.ascontiguousarray(value.transpose(to_torch[value.ndim]))
        for name, value in variables.items()
    }
    save_file(tensors, path)
    return path


def write_images(folder: Path, names: list[str], seed: int = 0) -> np.ndarray:
    """Writes 8×8 PNG files of noise and returns their pixels (N, 8, 8, 3) uint8."""
    pixels = np.random.default_rng(seed).integers(256, size=(len(names), 8, 8, 3), dtype=np.uint8)
    for name, image in zip(names, pixels, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return pixels
