"""One run: obtain the executable, classify the images, write report and predictions, whatever happens."""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from engine.accuracy import Accuracy
from engine.accuracy_files import CLASSES, CONFUSION, write_accuracy
from engine.artifact_files import read_artifact
from engine.classify import Tally, classify
from engine.clock import milliseconds_since_process_start
from engine.configuration import Configuration
from engine.errors import ParityError
from engine.inputs import ImageSource, open_source
from engine.memory import (
    check_device_memory,
    give_back_freed_memory,
    loaded_host_memory_bytes,
    peak_host_memory_bytes,
    predicted_host_memory_bytes,
)
from engine.metrics import Timeline
from engine.obtain import BuildProgram, SourceDigest, check_parity, obtain
from engine.report import Report
from engine.versions import versions
from sharding import OutOfMemory, UsageError

PREDICTIONS = "predictions.csv"


def run_configuration(
    configuration: Configuration, flags: dict[str, Any], build_program: BuildProgram, source_digest: SourceDigest
) -> tuple[Report, Path]:
    """Classifies the configuration's images and writes report.json and predictions.csv.

    Args:
      flags: for the report.
      build_program, source_digest: see `engine.obtain`.

    Returns:
      The report and the folder it was written to.

    Raises:
      Whatever ended the run, after the report was written with what had been finished.
    """
    report = Report(
        flags=flags,
        threads=configuration.threads,
        partition=configuration.partition,
        execution=configuration.execution,
        versions=versions(),
    )
    if not configuration.artifact:
        report.request(configuration)
    # What is wrong with the images is said before minutes of building.
    model = configuration.model
    _, notes = _open_source(configuration, model.image_size, model.crop_fraction, (), model.interpolation)
    output_dir = make_output_dir(configuration)
    flags["output_dir"] = str(output_dir)
    try:
        for note in notes:
            say(note, report)
        _run(configuration, build_program, source_digest, output_dir, report)
        report.status = "ok"
    except BaseException as error:
        report.status, report.failure_reason = failure(error)
        if isinstance(error, ParityError):
            report.compare(error.parity)
        print(f"what is finished stands in {output_dir}", file=sys.stderr)
        raise
    finally:
        report.peak_host_memory_bytes = peak_host_memory_bytes()
        report.write(output_dir)
    return report, output_dir


def _run(
    configuration: Configuration,
    build_program: BuildProgram,
    source_digest: SourceDigest,
    output_dir: Path,
    report: Report,
) -> None:
    give_back_freed_memory(_num_devices(configuration))
    obtained = obtain(configuration, build_program, source_digest)
    executable = obtained.executable
    report.build_ms, report.load_ms = obtained.build_ms, obtained.load_ms
    report.describe(executable)
    threads = configuration.threads
    report.predicted_host_memory_bytes = predicted_host_memory_bytes(
        executable, threads, loaded_host_memory_bytes(executable)
    )
    report.predicted_memory_bytes_per_device = check_device_memory(
        executable, threads, configuration.device_memory_limit
    )
    metadata = executable.metadata
    if missing := [name for name in ("crop_fraction", "labels", "trained") if name not in metadata]:
        raise UsageError(
            f"an image classifier with crop_fraction, labels and trained in its metadata is needed, "
            f"got {executable.name} without {', '.join(missing)}"
        )
    source, notes = _open_source(
        configuration,
        executable.input_spec.shape[1],
        metadata["crop_fraction"],
        tuple(metadata["labels"]),
        metadata.get("interpolation", "bilinear"),
    )
    report.data = source.description
    for note in (*executable.notes, *notes):
        if note not in report.notes:
            say(note, report)

    def on_first_result() -> None:
        report.first_inference_ms = milliseconds_since_process_start()

    tally, timeline = Tally(), Timeline()
    try:
        classify(
            executable,
            source,
            output_dir / PREDICTIONS,
            tally,
            timeline,
            threads=threads,
            skip_bad_images=configuration.skip_bad_images,
            on_first_result=on_first_result,
        )
    finally:
        accuracy = None
        if metadata["trained"] and tally.confusion is not None and tally.num_images:
            accuracy = Accuracy.of(tally.confusion, tally.top5_hits, source.class_names or ())
        report.measure(timeline.summary(), tally, accuracy)
    if accuracy is not None and tally.confusion is not None:
        title = f"{executable.name}, {report.precision}: top-1 {accuracy.top1:.2%} of {accuracy.num_images} images"
        write_accuracy(output_dir, accuracy, tally.confusion, title)
    if tally.skipped:
        say(f"{len(tally.skipped)} unreadable images skipped, listed as skipped_images in the report", report)
    if executable.parity is None:
        report.describe(check_parity(executable))


def _num_devices(configuration: Configuration) -> int:
    """Of the mesh: the artefact's, if the user names one."""
    if configuration.artifact:
        return read_artifact(Path(configuration.artifact), None)[0].mesh.num_devices
    return configuration.mesh.num_devices


def say(note: str, report: Report) -> None:
    """Tells the user, on standard error and in the report, what went another way than asked or expected."""
    print(f"note: {note}", file=sys.stderr, flush=True)
    report.notes.append(note)


def _open_source(
    configuration: Configuration, image_size: int, crop_fraction: float, labels: tuple[str, ...], interpolation: str
) -> tuple[ImageSource, list[str]]:
    return open_source(
        configuration.data,
        split=configuration.split,
        num_images=configuration.num_images,
        image_size=image_size,
        crop_fraction=crop_fraction,
        labels=labels,
        seed=configuration.seed,
        interpolation=interpolation,
    )


def make_output_dir(configuration: Configuration) -> Path:
    """The folder for the results of a run, the one asked for or a new one, without results of an earlier run.

    Raises:
      UsageError: if it can't be written to.
    """
    path = Path(configuration.output_dir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{configuration.mesh}")
    try:
        if configuration.output_dir:
            path.mkdir(parents=True, exist_ok=True)
            # Results of an earlier run must not stand beside the report of one that fails before its own.
            for result in (PREDICTIONS, CLASSES, CONFUSION):
                (path / result).unlink(missing_ok=True)
            with tempfile.TemporaryFile(dir=path):  # fails now rather than after minutes of building
                return path
        number = 1
        while True:
            unused = path if number == 1 else path.with_name(f"{path.name}-{number}")
            try:
                unused.mkdir(parents=True)
                return unused
            except FileExistsError:
                number += 1
    except OSError as error:
        raise UsageError(f"output_dir must be a folder that can be written to, got {path}: {error.strerror}") from None


def failure(error: BaseException) -> tuple[str, str]:
    """The report's `status` and `failure_reason` of a run that an exception ended."""
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "interrupted by the user"
    exhausted = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    if exhausted or isinstance(error, (OutOfMemory, MemoryError)):
        return "out_of_memory", reason
    return "failed", reason
