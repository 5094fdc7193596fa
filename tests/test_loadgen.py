"""MLPerf's LoadGen drives executables: scenarios, accuracy, verdicts, and what ends a test early."""

import importlib.util
import json
import re
import threading
import time
import types

import numpy as np
import pytest
from absl import flags

pytest.importorskip("mlperf_loadgen")

from cambrian.commands.flags import read_configuration
from cambrian.commands.images import UnreadableImage
from cambrian.commands.loadgen.loadgen import loadgen_command
from cambrian.commands.loadgen.queries import Queries
from cambrian.commands.loadgen.results import LoadGenResult, read_classes, read_result
from cambrian.commands.loadgen.search import find_peak
from cambrian.commands.loadgen.settings import LoadGenSettings
from cambrian.commands.output import LOADGEN_LOGS
from cambrian.commands.run.run import run_configuration
from cambrian.commands.sweep.setup import sweep_of_flags
from cambrian.sharding import MeshShape, UsageError
from command import LABELS, read_report, write_images
from flag_values import parse

NETS = f"""
import numpy as np
import cambrian


def linear(params, images):
    return images.reshape(len(images), -1) @ params["kernel"]


def classifier():
    kernel = np.random.default_rng(0).standard_normal((192, 10), np.float32)
    return cambrian.Classifier(linear, {{"kernel": kernel}}, cambrian.Preprocessing((8, 8), (8, 8)), labels={LABELS})
"""
NUM_IMAGES = 13  # no multiple of a query or a batch


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with a model and images of two classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cambrian.commands.loadgen.loadgen._MEASURED_S", 0.05)
    (tmp_path / "nets.py").write_text(NETS)
    write_images(tmp_path / "images", [f"{LABELS[index % 2]}/{index}.png" for index in range(NUM_IMAGES)])
    return tmp_path


def flags_of(*given: object):
    return parse("--mode", "loadgen", "--model", "nets.py:classifier", "--data", "images", "--execution", "online",
                 "--platform", "cpu", "--output_dir", "out", *given)  # fmt: skip


def run(folder, *given: object) -> dict:
    parsed = flags_of("--min_duration_s", "0", *given)  # no result depends on how fast this machine is
    loadgen_command(read_configuration(parsed), parsed)
    return read_report(folder / "out")


@pytest.mark.parametrize(
    ("scenario", "given", "batch_size", "reason"),
    [
        ("Offline", ("--batch_size", "4", "--min_query_count", "100"), 4, None),
        ("Server", ("--target_qps", "2000", "--max_latency_ms", "5000"), 1, None),
        ("SingleStream", (), 1, None),
        ("SingleStream", ("--batch_size", "2", "--min_query_count", "5"), 2, "64 queries"),
        ("MultiStream", ("--min_query_count", "10"), 8, "662 queries for early stopping"),
        ("MultiStream", ("--batch_size", "3"), 3, None),
    ],
)
def test_loadgen_judges_each_scenario(folder, capsys, scenario, given, batch_size, reason):
    report = run(folder, "--scenario", scenario, *given)
    result = report["loadgen"]
    assert (result["scenario"], result["test_mode"]) == (scenario, "PerformanceOnly")
    assert (report["batch_size"], report["mesh"], report["status"]) == (batch_size, "1x1", "ok")
    out = capsys.readouterr().out
    if reason is None:
        assert (result["result"], result["reasons"]) == ("VALID", [])
    else:
        assert result["result"] == "INVALID"
        assert any(reason in given for given in result["reasons"])
    assert f"{scenario}, PerformanceOnly: {result['result']}" in out
    least = {"Offline": 1, "SingleStream": 64, "MultiStream": 662}.get(scenario, 1307)  # as LoadGen asks
    queries = least if scenario == "Offline" else report["flags"]["min_query_count"] or least
    assert result["num_queries"] >= queries
    samples = {"Offline": 100, "MultiStream": 8 * queries}.get(scenario, queries)
    assert report["num_images"] >= samples
    assert report["images_per_second"] == result["samples_per_second"] > 0
    if scenario != "Offline":
        assert report["latency_ms_p99"] == result["latency_ms_p99"] >= result["latency_ms_p50"] > 0
    pads = scenario.endswith("Stream") and (8 if scenario == "MultiStream" else 1) % batch_size
    assert bool(pads) == any("is padded to batches of" in note for note in report["notes"])
    assert "Result is : " + result["result"] in (folder / "out" / "mlperf_log_summary.txt").read_text()


@pytest.mark.parametrize("scenario", ["Offline", "Server", "SingleStream", "MultiStream"])
def test_accuracy_from_loadgens_log_is_that_of_a_run(folder, scenario):
    parsed = parse("--model", "nets.py:classifier", "--data", "images", "--mesh", "1x1", "--platform", "cpu",
                  "--execution", "online", "--output_dir", "run")  # fmt: skip
    expected, _ = run_configuration(read_configuration(parsed), dict(parsed.values))
    assert expected.top1 is not None and 0 < expected.top1 < 1
    report = run(folder, "--scenario", scenario, "--test_mode", "AccuracyOnly")
    assert (report["top1"], report["top1_interval_95"]) == (expected.top1, list(expected.top1_interval_95 or ()))
    entries = json.loads((folder / "out" / "mlperf_log_accuracy.json").read_text())
    assert {entry["qsl_idx"] for entry in entries} == set(range(NUM_IMAGES))
    assert report["loadgen"] == {"scenario": scenario, "test_mode": "AccuracyOnly"}


def test_a_submission_run_measures_both(folder):
    report = run(folder, "--test_mode", "SubmissionRun")
    assert report["loadgen"]["result"] == "VALID" and report["top1"] is not None


def test_a_search_whose_first_rate_is_too_slow_says_so(folder):
    report = run(folder, "--scenario", "Server", "--test_mode", "FindPeakPerformance", "--max_latency_ms", "0.0001")
    assert report["loadgen"]["result"] == "INVALID"
    assert "Reduce target QPS to improve latency." in report["loadgen"]["reasons"]


def test_a_search_ends_with_the_highest_valid_rate_and_its_logs(folder):
    search = ("--scenario", "Server", "--test_mode", "FindPeakPerformance", "--min_query_count", "500")
    report = run(folder, *search, "--max_latency_ms", "5000")
    assert report["loadgen"]["result"] == "VALID"
    assert "Result is : VALID" in (folder / "out" / "mlperf_log_summary.txt").read_text()


@pytest.mark.parametrize("highest", [5.1, 9.9, 10.0, 23.0, 79.9])
def test_a_search_bisects_the_rate(tmp_path, monkeypatch, highest):
    rates, test_settings = [], types.SimpleNamespace(server_target_qps=10.0)

    def test():
        rates.append(test_settings.server_target_qps)
        for name in LOADGEN_LOGS:
            (tmp_path / name).write_text(str(rates[-1]))

    def result(*_):
        valid = "VALID" if rates[-1] <= highest else "INVALID"
        return LoadGenResult(valid, (), 1, rates[-1], rates[-1], 1.0, 1.0, 1.0)

    monkeypatch.setattr("cambrian.commands.loadgen.search.read_result", result)
    settings = LoadGenSettings.of(flags_of("--scenario", "Server", "--test_mode", "FindPeakPerformance").values)
    found = find_peak(test, settings, test_settings, 20.0, tmp_path)
    assert 0.96 * highest < found.target_qps <= highest and len(rates) < 15
    assert {(tmp_path / name).read_text() for name in LOADGEN_LOGS} == {str(found.target_qps)}


def test_one_query_of_scenario_server_has_no_rate(folder):
    report = run(folder, "--scenario", "Server", "--target_qps", "100", "--min_query_count", "1")
    assert (report["status"], report["loadgen"]["result"], report["loadgen"]["num_queries"]) == ("ok", "INVALID", 1)
    assert report["images_per_second"] is None and report["latency_ms_p99"] > 0


def test_the_result_is_read_from_the_log(tmp_path):
    values = {
        "effective_target_qps": 44,
        "result_validity": "INVALID",
        "result_invalid_reason": "Reduce it. ",
        "early_stopping_met": False,
        "early_stopping_result": " * Run unsuccessful.  * Processed 9 queries.",
        "result_query_count": 9,
        "result_scheduled_samples_per_sec": 43.5,
        **{f"result_{percent}.00_percentile_latency_ns": 1e6 * percent for percent in (50, 90, 99)},
    }
    lines = [
        ":::MLLOG " + json.dumps({"key": key, "value": value, "metadata": {"is_error": False}})
        for key, value in values.items()
    ]
    (tmp_path / "mlperf_log_detail.txt").write_text("\n".join(lines) + "\n")
    settings = LoadGenSettings.of(flags_of("--scenario", "Server", "--test_mode", "FindPeakPerformance").values)
    result = read_result(tmp_path, settings)
    assert (result.target_qps, result.samples_per_second, result.latency_ms_p90) == (44, 43.5, 90)
    assert result.reasons == ("Reduce it.", "Early stopping not satisfied: Run unsuccessful. Processed 9 queries.")
    (tmp_path / "mlperf_log_detail.txt").write_text("")
    with pytest.raises(RuntimeError, match="LoadGen must write its result to "):
        read_result(tmp_path, settings)
    part = "LoadGen must find room on the disk for all of .*{}, got a part: Unterminated string"
    (tmp_path / "mlperf_log_detail.txt").write_text("\n".join(lines)[:-60])
    with pytest.raises(RuntimeError, match=part.format("mlperf_log_detail.txt")):
        read_result(tmp_path, settings)
    (tmp_path / "mlperf_log_accuracy.json").write_text('[{"qsl_idx": 0, "data": "05')
    with pytest.raises(RuntimeError, match=part.format("mlperf_log_accuracy.json")):
        read_classes(tmp_path)


def test_an_unreadable_image_ends_the_test_and_loadgen(folder):
    (folder / "images" / "ant" / "0.png").write_bytes(b"no picture")
    with pytest.raises(UnreadableImage):
        run(folder, "--scenario", "SingleStream")
    report = read_report(folder / "out")
    assert report["status"] == "failed" and "0.png" in report["failure_reason"]
    assert not [thread for thread in threading.enumerate() if thread.name == "cambrian-loadgen"]


class Asked:
    """What LoadGen gives for a sample."""

    def __init__(self, number: int):
        self.id = self.index = number


def test_samples_wait_for_a_full_batch_no_longer_than_the_delay():
    queries = Queries(batch_size=3, max_delay_s=0.2)
    batches = queries.batches()
    queries.issue([Asked(number) for number in range(4)])
    begin = time.perf_counter()
    assert [sample.index for sample in next(batches)] == [0, 1, 2]
    assert time.perf_counter() - begin < 0.2
    assert [sample.index for sample in next(batches)] == [3]
    assert time.perf_counter() - begin >= 0.19
    queries.issue([Asked(4)])
    queries.flush()
    assert [sample.index for sample in next(batches)] == [4]
    queries.end()
    assert list(batches) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--scenario Online", "scenario must be one of Offline, Server, SingleStream, MultiStream, got 'Online'"),
        ("--target_qps 0", "target_qps must be above 0 samples per second, got 0"),
        ("--target_qps nan", "target_qps must be above 0 samples per second, got nan"),
        ("--scenario Server", "scenario Server needs --target_qps, or --test_mode FindPeakPerformance to find the"),
        ("--scenario SingleStream --target_qps 1", "target_qps belongs to scenarios Server and Offline, got Single"),
        ("--test_mode FindPeakPerformance", "test_mode FindPeakPerformance searches in scenario Server, got Offline"),
        ("--min_duration_s -1", "min_duration_s must be from 0 to 604800, got -1"),
        ("--min_query_count 0", "min_query_count must be from 1 to 1000000000, got 0"),
        ("--max_latency_ms 1", "--max_latency_ms bounds scenario Server or ranks a sweep, got Offline"),
        ("--mlperf_rules --min_duration_s 1", "MLPerf's rules decide min_duration_s: leave --min_duration_s out, got "),
        ("--skip_bad_images", "--skip_bad_images belongs to other modes, got mode loadgen"),
        ("--mode run --scenario Server", "--scenario belongs to mode loadgen, got mode run"),
    ],
)
def test_flags_that_make_no_sense(given, message):
    with pytest.raises((UsageError, flags.Error), match=re.escape(message)):
        read_configuration(flags_of(*given.split()))


def test_a_missing_extra_is_one_line_with_its_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"mode loadgen needs the extra mlperf \(pip install 'cambrian\[mlperf\]'\)"):
        read_configuration(flags_of())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "--scenario MultiStream --num_images 7",
            "scenario MultiStream needs at least 8 images, got 7 images: 7 of 13 images ",
        ),
        ("--target_qps 1e12", "samples, which fit the memory, got 10000000000000"),
        ("--scenario Server --target_qps 1e12", "samples, which fit the memory, got 10000000000000"),
        ("--scenario MultiStream --min_query_count 1000000000", "samples, which fit the memory, got 8000000000"),
        (
            "--mlperf_rules",
            "scenario Offline needs at least 1024 images, by MLPerf's rules, got 13 images: folder images",
        ),
    ],
)
def test_what_the_images_or_the_memory_don_t_allow_is_refused_before_anything_is_written(folder, given, message):
    parsed = flags_of(*given.split())
    with pytest.raises(UsageError, match=re.escape(message)):
        loadgen_command(read_configuration(parsed), parsed)
    assert not (folder / "out").exists()


def test_accuracy_needs_labels(folder):
    write_images(folder / "unlabelled", ["1.png"])
    parsed = flags_of("--data", "unlabelled", "--test_mode", "AccuracyOnly")
    with pytest.raises(UsageError, match="test_mode AccuracyOnly needs trained weights, and images labelled with"):
        loadgen_command(read_configuration(parsed), parsed)


def test_batches_fit_the_scenario_and_the_mesh():
    def batch_size(scenario: str, mesh: str) -> int:
        given = ("--scenario", scenario, "--target_qps", "1") if scenario == "Server" else ("--scenario", scenario)
        return LoadGenSettings.of(flags_of(*given).values).batch_size(MeshShape.parse(mesh))

    assert [batch_size("SingleStream", mesh) for mesh in ("1x1", "4x1", "4x8")] == [1, 1, 8]
    assert [batch_size("MultiStream", mesh) for mesh in ("1x1", "1x3", "1x16")] == [8, 9, 16]
    assert [batch_size("Server", mesh) for mesh in ("1x1", "2x2")] == [1, 2]
    assert batch_size("Offline", "1x1") == 0


@pytest.mark.parametrize("scenario", ["SingleStream", "MultiStream"])
def test_a_stream_that_is_faster_than_measured_has_queries_for_its_duration(scenario):
    settings = LoadGenSettings.of(flags_of("--scenario", scenario).values)
    expected = settings.test_settings(8, 0.01)
    assert expected.single_stream_expected_latency_ns == expected.multi_stream_expected_latency_ns < 1e7 / 4


def test_a_sweep_runs_the_scenario_and_builds_for_its_batch():
    parsed = flags_of("--execution", "offline", "--scenario", "Server", "--test_mode", "FindPeakPerformance",
                     "--max_latency_ms", "50", "--batch_size", "1,2", "--objective", "latency_ms_p90")  # fmt: skip
    sweep = sweep_of_flags(parsed, ["main.py"])
    cell = sweep.grid.cells[1]
    command = " ".join(sweep.run_command(cell, 0, sweep.path))
    assert "--mode loadgen" in command and "--max_latency_ms 50" in command and "--batch_size 2" in command
    assert "--objective" not in command
    assert sweep.build_command is not None
    built = " ".join(sweep.build_command(cell))
    assert "--mode compile" in built and "--batch_size 2" in built and "scenario" not in built and "ms" not in built
    invalid = {"result": "INVALID", "reasons": ["Reduce target QPS to improve latency."]}
    assert sweep.objective.violation({"latency_ms_p99": 1.0, "loadgen": invalid}) == (
        "LoadGen must find it VALID, got INVALID: Reduce target QPS to improve latency."
    )
    with pytest.raises(UsageError, match="--search must be grid, got auto"):
        sweep_of_flags(flags_of("--batch_size", "1,2", "--search", "auto"), ["main.py"])
    np.testing.assert_equal(sweep.num_images, dict.fromkeys(sweep.grid.cells, NUM_IMAGES))
