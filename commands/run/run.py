"""`--mode run`: classifies the images and writes report and predictions, whatever happens."""

import contextlib
import csv
import sys
from pathlib import Path
from typing import Any

from cambrian.commands.accuracy.accuracy import Accuracy
from cambrian.commands.accuracy.files import CLASSES, CONFUSION, write_accuracy
from cambrian.commands.configuration import Configuration
from cambrian.commands.console import print_note, progress_bar
from cambrian.commands.executables import check_parity, make_executable
from cambrian.commands.flags import Flags
from cambrian.commands.images import ImageSource, ModelImages, choose_data, open_source
from cambrian.commands.output import failure, make_output_dir
from cambrian.commands.report import Report
from cambrian.commands.run.classify import Tally, classify, images_of
from cambrian.commands.run.clock import milliseconds_since_process_start
from cambrian.engine.artifact.layout import read_artifact
from cambrian.engine.artifact.versions import versions
from cambrian.engine.errors import ParityError
from cambrian.engine.runtime.executable import Executable
from cambrian.engine.runtime.memory import (
    check_device_memory,
    loaded_host_memory_bytes,
    peak_host_memory_bytes,
    predicted_host_memory_bytes,
)
from cambrian.engine.runtime.metrics import Timeline
from cambrian.sharding.host import return_freed_memory

PREDICTIONS = "predictions.csv"


def run_command(configuration: Configuration, flags: Flags) -> None:
    """Runs the configuration and prints what came of it.

    Raises:
      As `run_configuration`.
    """
    report, output_dir = run_configuration(configuration, dict(flags.values))
    from cambrian.commands.run.table import print_table  # rich: a tenth of a second that the first result doesn't wait

    print_table(report)
    print(f"report and predictions in {output_dir}")


def run_configuration(configuration: Configuration, flags: dict[str, Any]) -> tuple[Report, Path]:
    """Classifies the configuration's images and writes report.json and predictions.csv.

    Args:
      flags: for the report.

    Returns:
      The report and the folder it was written to.

    Raises:
      Whatever ended the run, after the report was written with what had been finished.
    """
    # What is wrong with the images is said before minutes of building.
    source, notes = (None, []) if configuration.data == "auto" else _open(configuration.data, configuration)
    output_dir = make_output_dir(configuration, (PREDICTIONS, CLASSES, CONFUSION))
    report = Report(
        flags=flags | {"output_dir": str(output_dir)},
        threads=configuration.threads,
        partition=configuration.partition,
        execution=configuration.execution,
        versions=versions(),
    )
    if not configuration.artifact:
        report.request(configuration)
    try:
        for note in notes:
            _say(note, report)
        _run(configuration, source, output_dir, report)
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


def _open(data: str, configuration: Configuration) -> tuple[ImageSource, list[str]]:
    return open_source(data, split=configuration.split, num_images=configuration.num_images, seed=configuration.seed)


def _run(configuration: Configuration, source: ImageSource | None, output_dir: Path, report: Report) -> None:
    return_freed_memory(_num_devices(configuration))
    made = make_executable(configuration)
    executable, threads = made.executable, configuration.threads
    report.build_ms, report.load_ms = made.build_ms, made.load_ms
    report.describe(executable)
    report.predicted_host_memory_bytes = predicted_host_memory_bytes(
        executable, threads, loaded_host_memory_bytes(executable)
    )
    report.predicted_memory_bytes_per_device = check_device_memory(
        executable, threads, configuration.device_memory_limit_bytes
    )
    data_notes = []
    if source is None:  # auto, which depends on the model
        data, data_notes = choose_data(tuple(executable.metadata.get("labels", ())), executable.output_spec.shape[-1])
        source, _ = _open(data, configuration)
    images, notes = images_of(executable, source)
    report.data = images.description
    for note in (*data_notes, *executable.notes, *notes):
        if note not in report.notes:
            _say(note, report)
    _classify(executable, images, configuration, output_dir, report)
    if report.skipped_images:
        _say(f"{len(report.skipped_images)} unreadable images skipped, listed as skipped_images in the report", report)
    if executable.parity is None:
        report.describe(check_parity(executable))


def _classify(
    executable: Executable, images: ModelImages, configuration: Configuration, output_dir: Path, report: Report
) -> None:
    """Writes predictions and accuracy; the report and the file hold what is finished also when an exception ends it."""
    tally, timeline, accuracy = Tally.of(executable, images), Timeline(), None
    batches = classify(
        executable,
        images,
        threads=configuration.threads,
        skip_bad_images=configuration.skip_bad_images,
        timeline=timeline,
    )
    try:
        with (
            (output_dir / PREDICTIONS).open("w", newline="", encoding="utf-8") as file,
            progress_bar(len(images), "classifying") as show_progress,
            contextlib.closing(batches),
        ):
            rows = csv.writer(file)
            rows.writerow(["image", "label", "predicted", "probability"])
            for batch in batches:
                if report.first_inference_ms is None and batch.predictions:
                    report.first_inference_ms = milliseconds_since_process_start()
                for made in batch.predictions:
                    rows.writerow([made.image, made.label or "", made.predicted, f"{made.probability:.6f}"])
                tally.add(batch)
                show_progress(batch.indices.stop)
    finally:
        if executable.metadata["trained"] and tally.confusion is not None and tally.num_images:
            accuracy = Accuracy.of(tally.confusion, tally.top5_hits, images.class_names or ())
        report.measure(timeline.summary(), tally.num_images, tally.skipped, accuracy)
    if accuracy is not None and tally.confusion is not None:
        title = f"{executable.name}, {report.precision}: top-1 {accuracy.top1:.2%} of {accuracy.num_images} images"
        write_accuracy(output_dir, accuracy, tally.confusion, title)


def _num_devices(configuration: Configuration) -> int:
    """Of the mesh: the artefact's, if the user names one."""
    if configuration.artifact:
        return read_artifact(Path(configuration.artifact), None)[0].mesh.num_devices
    return configuration.mesh.num_devices


def _say(note: str, report: Report) -> None:
    print_note(note)
    report.notes.append(note)
