"""`--mode loadgen`: a test of MLPerf's LoadGen, with its logs and its verdict in the report."""

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlperf_loadgen as loadgen  # pyright: ignore[reportMissingImports]
import numpy as np
import psutil

from cambrian.commands.accuracy.accuracy import wilson_interval
from cambrian.commands.configuration import Configuration
from cambrian.commands.console import counted
from cambrian.commands.flags import Flags
from cambrian.commands.images import ModelImages
from cambrian.commands.loadgen.queries import Samples, run_test
from cambrian.commands.loadgen.results import read_classes, read_result
from cambrian.commands.loadgen.search import find_peak
from cambrian.commands.loadgen.settings import LoadGenSettings
from cambrian.commands.output import add_note
from cambrian.commands.report import Report
from cambrian.commands.run.classify import numbered_alike
from cambrian.commands.run.run import run_configuration
from cambrian.commands.run.table import print_table
from cambrian.engine.cards import Cards
from cambrian.engine.runtime.executable import Executable
from cambrian.engine.runtime.metrics import Timeline
from cambrian.engine.runtime.stream import stream
from cambrian.sharding import UsageError
from cambrian.sharding.host.control_groups import control_group_bytes

_MEASURED_S = 1.0
_BYTES_A_SAMPLE = 400  # that LoadGen and `Queries` hold until the end of a test, as measured in scenario Offline


def loadgen_command(configuration: Configuration, flags: Flags) -> None:
    """Runs a test of LoadGen and prints its result; raises as `run_configuration`."""
    settings = LoadGenSettings.of(flags.values)
    report, output_dir = run_configuration(configuration, flags.reported, functools.partial(_answer_loadgen, settings))
    print_table(report)
    print(f"report and LoadGen's logs in {output_dir}")


def _answer_loadgen(
    settings: LoadGenSettings,
    executable: Executable | Cards,
    images: ModelImages,
    configuration: Configuration,
    output_dir: Path,
    report: Report,
    start: Callable[[], None],
) -> None:
    assert isinstance(executable, Executable)  # the flags refuse cards in this mode
    measures_accuracy = settings.test_mode in ("AccuracyOnly", "SubmissionRun")
    if measures_accuracy and not (executable.metadata["trained"] and numbered_alike(executable, images)):
        raise UsageError(
            f"test_mode {settings.test_mode} needs trained weights, and images labelled with the model's classes, "
            f"got {executable.name} with {images.description}"
        )
    batch_size, query = executable.batch_size, settings.samples_per_query
    is_stream = settings.scenario in ("SingleStream", "MultiStream")  # one query after another
    launch_s = _seconds_a_batch(executable, 1 if is_stream else configuration.threads)
    test_settings = settings.test_settings(batch_size, launch_s)
    if len(images) < (needed := settings.num_images_needed(test_settings)):
        rules = ", by MLPerf's rules" if settings.mlperf_rules else ""
        raise UsageError(
            f"scenario {settings.scenario} needs at least {needed} images{rules}, "
            f"got {counted(len(images), 'image')}: {images.description}"
        )
    if settings.test_mode != "AccuracyOnly":
        _check_host_memory(settings.num_samples(test_settings))
    start()
    if is_stream and query % batch_size:
        add_note(f"each query of {settings.scenario}, {query} samples, is padded to batches of {batch_size}", report)
    least = f"{1e-3 * test_settings.min_duration_ms:g} s, and {test_settings.min_query_count} queries or more"
    print(f"LoadGen, {settings.scenario}, {settings.test_mode}: at least {least}, a test", file=sys.stderr)
    samples, timeline, result = Samples(images, configuration.threads), Timeline(), None
    run = functools.partial(
        run_test,
        executable,
        samples,
        len(images),
        test_settings,
        _log_settings(output_dir),
        threads=configuration.threads,
        max_delay_s=settings.max_delay_s(test_settings),
        timeline=timeline,
    )
    try:
        if settings.test_mode == "FindPeakPerformance":
            result = find_peak(run, settings, test_settings, batch_size / launch_s, output_dir)
        else:
            run()
    finally:
        report.measure(timeline.summary(), timeline.num_samples, [], None)
    report.loadgen = {"scenario": settings.scenario, "test_mode": settings.test_mode}
    if settings.test_mode != "AccuracyOnly":
        result = result or read_result(output_dir, settings)
        report.loadgen |= dataclasses.asdict(result)
        latencies = {
            name: value
            for name in ("latency_ms_p50", "latency_ms_p90", "latency_ms_p99")
            if (value := getattr(result, name)) is not None
        }
        report.summary = dataclasses.replace(report.summary, images_per_second=result.samples_per_second, **latencies)
    if measures_accuracy:
        classes = read_classes(output_dir)
        hits = sum(samples.labels[index] == predicted for index, predicted in classes.items())
        report.top1, report.top1_interval_95 = hits / len(classes), wilson_interval(hits, len(classes))


def _check_host_memory(num_samples: int) -> None:
    """Raises UsageError unless the samples of a test fit the memory: LoadGen would end the process."""
    most = int(min(psutil.virtual_memory().total, control_group_bytes() or math.inf) / _BYTES_A_SAMPLE)
    if num_samples > most:
        raise UsageError(
            f"target_qps, min_duration_s and min_query_count must make a test of at most {most} samples, which fit the "
            f"memory, got {num_samples}"
        )


def _seconds_a_batch(executable: Executable, threads: int) -> float:
    """Measures the time of a batch at the throughput of so many host threads."""
    spec, ends = executable.input_spec, []
    inputs = np.zeros(spec.shape, spec.dtype)
    executable(inputs)  # runs a deferred probe
    begin = time.perf_counter()

    def batches() -> Iterator[np.ndarray]:
        while len(ends) <= threads or ends[-1] - begin < _MEASURED_S:
            yield inputs

    for _ in stream(executable, batches(), threads=threads):
        ends.append(time.perf_counter())
    return (ends[-1] - begin) / len(ends)


def _log_settings(output_dir: Path) -> Any:
    settings = loadgen.LogSettings()
    settings.log_output.outdir = str(output_dir)
    settings.log_output.copy_summary_to_stdout = False
    settings.enable_trace = False
    return settings
