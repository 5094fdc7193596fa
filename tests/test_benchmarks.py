"""What the benchmarks compare computes the same, and their statistics are right."""

import dataclasses
import functools
import importlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from absl import flags
from benchmarks.gpu_parts import inference, peak, training
from benchmarks.gpu_parts.processes import run_part
from benchmarks.gpu_parts.result_table import result_table
from benchmarks.ratios import Ratio, best
from benchmarks.sides import PRECISIONS, SIDES
from benchmarks.sides.problem import Problem, Runner, make_problem
from benchmarks.sides.race import LIMITS, Contender, Race, SideError
from benchmarks.sides.reference import reference_logits
from benchmarks.sides.result import Result, summarise
from benchmarks.sides.worker import Server

from cambrian.commands.flags import read_configuration
from cambrian.engine.runtime.parity import compare
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.training.recipe import Recipe
from cambrian.sharding import MeshShape
from flag_values import parse

BATCH = 3
CASES = [
    pytest.param(side, mode, precision, marks=[pytest.mark.slow] * (precision != "float32"))
    for side, entry in SIDES.items()
    for mode in entry.modes
    for precision in entry.precisions
    if mode != "compile"  # takes a minute
]
OPTIONAL = {"openvino": ("openvino", "onnx"), "onnxruntime": ("onnxruntime", "onnx"), "pytorch": ("torch",)}


@functools.cache
def tiny_problem() -> Problem:
    # Every kind of layer, at a size that its strides don't divide.
    images = np.random.default_rng(0).integers(0, 256, (16, 35, 35, 3), np.uint8)
    return make_problem(Architecture("imagenet", (1, 1), bottleneck=True, num_classes=10, width=8), images)


@functools.cache
def tiny_reference() -> np.ndarray:
    return reference_logits(tiny_problem(), BATCH)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "mode", "precision"), CASES)
def test_every_side_gives_the_reference_logits(side, mode, precision):
    for package in (*OPTIONAL.get(side, ()), *["nncf"] * ((side, precision) == ("openvino", "int8"))):
        pytest.importorskip(package)
    module = importlib.import_module(f"benchmarks.sides.{SIDES[side].module}")
    runner = module.make_runner(tiny_problem(), BATCH, precision, mode)
    logits = runner.run(2 * runner.in_flight)
    assert logits.shape == (BATCH, 10) and logits.dtype == np.float32
    margin = 1 if precision == "int8" else 5
    assert compare(logits, tiny_reference()).max_relative_error <= LIMITS[precision] / margin


def test_the_reference_depends_on_every_image_and_on_it_alone():
    logits = reference_logits(tiny_problem(), BATCH + 2)  # more than one chunk
    np.testing.assert_allclose(logits[:BATCH], tiny_reference(), rtol=1e-12)
    assert len(np.unique(logits.round(6), axis=0)) == BATCH + 2


def test_ratio_is_the_median_of_the_rounds_ratios():
    ratio = Ratio.of([2.0, 9.0, 4.0], [1.0, 3.0, 4.0])
    assert ratio == Ratio(2.0, 1.0, 3.0)
    assert str(ratio) == "2.00 (1.00…3.00)"
    with pytest.raises(ValueError):
        Ratio.of([1.0], [1.0, 2.0])


def test_best_has_the_highest_median():
    assert best({4: [1.0, 9.0, 1.0], 8: [2.0, 2.0, 2.0]}) == 8


def test_rows_compare_the_best_of_ours_with_the_best_batch_of_each_side():
    slow = Result("ours", "1x1 call", "float32", {}, {4: [5.0, 5.0], 8: [6.0, 6.0]}, [10.0, 10.0])
    fast = Result("ours", "1x1 stream", "float32", {}, {4: [8.0, 9.0], 8: [7.0, 7.0]}, [20.0, 20.0])
    other = Result("openvino", "latency", "float32", {}, {4: [1.0, 1.0], 8: [4.0, 3.0]}, [5.0, 10.0])
    rows = summarise([slow, fast, other])
    assert [row.best_batch for row in rows] == [8, 4, 8]
    assert [row.images_per_second for row in rows] == [6.0, 8.5, 3.5]
    assert rows[1].speedup == Ratio(1.0, 1.0, 1.0)
    assert rows[2].speedup == Ratio(2.5, 2.0, 3.0)
    assert rows[2].latency_speedup == Ratio(0.75, 0.5, 1.0)
    (row,) = summarise([other])
    assert row.speedup is None and row.latency_speedup is None


def test_worker_fills_the_launches_in_flight_and_checks_the_logits():
    launches = []

    def run(count):
        launches.append(count)
        return np.full((4, 2), 1.5, np.float32)

    server = Server(lambda batch: Runner(run, in_flight=3), np.ones((8, 2)))
    assert server.build(4)["relative_error"] == pytest.approx(0.5)
    assert server.throughput(4, 1e-3)["images_per_second"] > 0
    assert launches[:2] == [1, 3] and launches[2] >= 3 and launches[2] % 3 == 0
    assert server.latency(4, 1e-9)["latency_ms"] > 0


class FakeClient:
    """Answers every line with one number, or fails."""

    def __init__(self, number: float | None):
        self.number = number

    def ask(self, command, *values):
        if self.number is None:
            raise SideError("broken")
        return self.number


@pytest.mark.parametrize(("number", "reason"), [(None, "broken"), (float("nan"), "got nan"), (2e-4, "got 0.0002")])
def test_who_fails_leaves_the_race(number, reason, capsys):
    contenders = [Contender(FakeClient(value), Result("ours", str(value), "float32")) for value in (1e-5, number)]  # pyright: ignore[reportArgumentType]
    race = Race(contenders)
    race.each(Contender.build, 8)
    assert [contender.result.mode for contender in race.contenders] == ["1e-05"]
    assert race.failures == [capsys.readouterr().out.strip()]
    assert f"ours, {number}, float32 left out at build(8,): " in race.failures[0] and reason in race.failures[0]


def test_every_second_round_goes_backwards():
    race = Race([Contender(FakeClient(1.0), Result("ours", mode, PRECISIONS[0])) for mode in "abc"])  # pyright: ignore[reportArgumentType]
    order = []
    for _ in range(2):
        race.each(lambda contender: order.append(contender.result.mode))
        race.turn()
    assert "".join(order) == "abccba"


@functools.cache
def scaling() -> ModuleType:
    return importlib.import_module("benchmarks.scaling")  # its flags are those of other scripts, too


def test_scaling_runs_every_setting_once():
    settings = scaling().all_settings(64)
    assert len(settings) == len(set(settings))
    assert [str(each.mesh) for each in scaling().over_devices(64)] == ["1x1", "1x2", "1x4", "1x8", "1x16", "1x32"]
    meshes = [str(each.mesh) for each in scaling().over_model_axis(64, "intra_sample")]
    assert meshes == ["2x16", "4x8", "8x4", "16x2", "32x1"]  # 1x32 cuts nothing
    assert {"mesh 4x8, batch 256, auto", "mesh 1x1, batch 1, auto"} <= set(map(str, settings))


def test_scaling_builds_and_runs_a_setting_by_commands_that_main_takes(tmp_path):
    flags.FLAGS.mark_as_parsed()
    setting = scaling().Setting(MeshShape(4, 8), 64, "intra_sample")
    built, run = (
        read_configuration(parse(*scaling().arguments(mode, setting, tmp_path))) for mode in ("compile", "run")
    )
    assert dataclasses.replace(run, data="auto", num_images=0, output_dir="") == built
    assert (run.num_images, run.data) == (256, "synthetic")


@pytest.mark.slow
def test_every_script_shows_its_help(tmp_path):
    folder = Path(__file__).parent.parent / "benchmarks"
    scripts = [path for path in sorted(folder.glob("*.py")) if "__main__" in path.read_text()]

    def show(script: Path) -> str:
        shown = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, cwd=tmp_path)
        return shown.stdout or shown.stderr

    with ThreadPoolExecutor(2) as pool:
        texts = dict(zip(scripts, pool.map(show, scripts), strict=True))
    needs_extra = re.compile(
        r"ModuleNotFoundError: No module named '(openvino|timm|torch|torchvision|transformers)'\n$"
    )
    for script, text in texts.items():
        assert "\n    python " in text or needs_extra.search(text), f"{script}: {text}"


@pytest.mark.slow
def test_parts_of_the_gpu_benchmark_measure_here():
    (products,) = peak.measure("cpu", size=64, launches=2, repeats=1)
    (ours,) = inference.measure_ours(tiny_problem(), "cpu", ["bfloat16"], [2], num_images=5)
    (stock,) = inference.measure_stock(tiny_problem(), "cpu", [2], num_images=5)
    assert ours["relative_error"] <= 2e-2 and ours["side"] == "ours, offline, 1x1"
    recipe = Recipe(batch_size=4, crop_padding=1, epochs=10)
    (trained,) = training.measure(Architecture("cifar", (1,), False, 4, width=4), recipe, "cpu", 2, 10, size=8)
    assert len(trained["images_per_second"]) == 2
    assert trained["recipe_s_by_calculation"] == pytest.approx(100 / trained["images_per_second"][1])
    rows = [{"size": 35, **row, "tflops": 1.0} for row in (ours, stock)]
    parts = {"peak": {"rows": [products]}, "inference 35": {"rows": rows}, "training": {"rows": [trained]}}
    assert result_table(parts).row_count == 2


def test_a_part_of_the_gpu_benchmark_keeps_the_rows_before_its_end():
    code = "import time; print('{\"side\": 1}', flush=True); time.sleep({})"
    for seconds, end, failure in ((60, "", "not finished in 1 s"), (0, "; 1 / 0", "exit code 1: ZeroDivisionError")):
        part = run_part([sys.executable, "-c", code.replace("{}", str(seconds), 1).replace("{}", "") + end], 1.0, {})
        assert part["rows"] == [{"side": 1}]
        assert part["failure"].startswith(failure)


@pytest.mark.slow
def test_the_gpu_benchmark_refuses_a_machine_without_one():
    script = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
    refused = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert refused.returncode == 2 and not refused.stdout
    assert refused.stderr.startswith("error: expected a gpu that JAX can use, got none: ")
    assert refused.stderr.count("\n") == 1
