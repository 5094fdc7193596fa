"""`--mode run`: classifies the images and writes predictions and a report, however the run ends."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cambrian.commands.accuracy.accuracy import Accuracy, write_accuracy
from cambrian.commands.configuration import Configuration
from cambrian.commands.console import counted, print_note, progress_bar
from cambrian.commands.executables import check_parity
from cambrian.commands.flags import Flags
from cambrian.commands.images import ImageSource, ModelImages, choose_data, for_model, open_source
from cambrian.commands.output import PREDICTIONS, add_note, deferred_interrupts, output_folder, reporting
from cambrian.commands.ready import ready
from cambrian.commands.report import Report
from cambrian.commands.run.classify import Tally, check_classifier, classify, images_of
from cambrian.commands.run.clock import milliseconds_since_process_start
from cambrian.commands.run.predictions import PredictionFile
from cambrian.commands.shared_mesh import check_images
from cambrian.engine.artifact.fingerprint import versions
from cambrian.engine.cards import Cards
from cambrian.engine.errors import ParityError
from cambrian.engine.hosts import SharedExecutable
from cambrian.engine.runtime.executable import Executable
from cambrian.engine.runtime.metrics import Timeline


def run_command(configuration: Configuration, flags: Flags) -> None:
    """Runs the configuration and prints its results; raises as `run_configuration`.

    Of several processes that share a mesh, all but process 0 write nothing.
    """
    if configuration.process_id:
        images = counted(_run_part(configuration), "image")
        print(f"process {configuration.process_id}: {images}; report and predictions are with process 0")
        return
    report, output_dir = run_configuration(configuration, flags.reported)
    from cambrian.commands.run.table import print_table  # rich: a tenth of a second that the first result doesn't wait

    print_table(report)
    print(f"report and predictions in {output_dir}")


# (executable, images, configuration, output folder, report, function to call before the first result)
Work = Callable[[Executable | Cards, ModelImages, Configuration, Path, Report, Callable[[], None]], None]


def run_configuration(
    configuration: Configuration, flags: dict[str, Any], work: Work | None = None
) -> tuple[Report, Path]:
    """Classifies the configuration's images and writes report.json and predictions.csv.

    Args:
      flags: as the report shows them.
      work: what to do with executable and images instead of classifying them.

    Returns:
      The report and its folder.

    Raises:
      The exception that ended the run, after the report was written with the finished part, unless the request was
        refused before it had any.
    """
    # Images first: a mistake in them is reported before minutes of building.
    source, notes = (None, []) if configuration.data == "auto" else _open(configuration.data, configuration)
    model = configuration.model
    brings_labels = (
        configuration.artifact or configuration.user_model or configuration.weights not in ("auto", "random")
    )
    if source is not None and not brings_labels:
        for_model(source, model.preprocessing, model.labels, model.num_classes)
    with output_folder(configuration) as output_dir:
        report = Report(
            flags=flags | {"output_dir": str(output_dir.absolute())},
            threads=configuration.threads,
            cards=configuration.cards,
            num_processes=configuration.num_processes,
            partition=configuration.partition,
            execution=configuration.execution,
            versions=versions(),
        )
        if not configuration.artifact:
            report.request(configuration)
        with reporting(report, output_dir) as start:
            for note in notes:
                add_note(note, report)
            try:
                with ready(configuration) as (executable, costs):
                    report.build_ms, report.load_ms = costs.build_ms, costs.load_ms
                    report.predicted_memory_bytes_per_device = costs.device_memory_bytes
                    report.predicted_host_memory_bytes = costs.host_memory_bytes
                    _run(executable, configuration, source, output_dir, report, start, work or _classify)
            except ParityError as error:
                report.compare(error.parity)
                raise
    return report, output_dir


def _open(data: str, configuration: Configuration) -> tuple[ImageSource, list[str]]:
    return open_source(data, split=configuration.split, num_images=configuration.num_images, seed=configuration.seed)


def _run(
    executable: Executable | Cards,
    configuration: Configuration,
    source: ImageSource | None,
    output_dir: Path,
    report: Report,
    start: Callable[[], None],
    work: Work,
) -> None:
    check_classifier(executable)
    report.describe(executable)
    images, notes = _images(executable, configuration, source)
    report.data = images.description
    for note in notes:
        add_note(note, report)
    work(executable, images, configuration, output_dir, report, start)
    if report.skipped_images:
        skipped = counted(len(report.skipped_images), "unreadable image")
        add_note(f"{skipped} skipped, listed as skipped_images in the report", report)
        if not report.num_images:
            raise RuntimeError(f"expected at least one readable image, got none in {images.description}")
    if isinstance(executable, Executable) and executable.parity is None:
        report.describe(check_parity(executable))


def _images(
    executable: Executable | Cards, configuration: Configuration, source: ImageSource | None
) -> tuple[ModelImages, list[str]]:
    """The images as the executable's model reads them, and its notes and theirs."""
    data_notes = []
    if source is None:  # auto, which depends on the model
        data, data_notes = choose_data(tuple(executable.metadata.get("labels", ())), executable.output_spec.shape[-1])
        source, _ = _open(data, configuration)
    images, notes = images_of(executable, source)
    if isinstance(executable, SharedExecutable):
        check_images(images, executable.group)
    return images, [*data_notes, *executable.notes, *notes]


def _run_part(configuration: Configuration) -> int:
    """Classifies this process's part of each batch for process 0; returns the number of its images."""
    source, notes = (None, []) if configuration.data == "auto" else _open(configuration.data, configuration)
    with ready(configuration) as (executable, _):
        check_classifier(executable)
        images, more = _images(executable, configuration, source)
        for note in dict.fromkeys((*notes, *more)):
            print_note(note)
        batches = classify(
            executable, images, threads=configuration.threads, skip_bad_images=configuration.skip_bad_images
        )
        with contextlib.closing(batches):
            return sum(len(batch.predictions) for batch in batches)


def _classify(
    executable: Executable | Cards,
    images: ModelImages,
    configuration: Configuration,
    output_dir: Path,
    report: Report,
    start: Callable[[], None],
) -> None:
    """Writes predictions and accuracy; if an exception ends it, report and predictions agree on the finished part."""
    start()
    if not (configuration.batch_size or configuration.artifact):
        _note_padding(len(images), executable, report)
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
            PredictionFile(output_dir / PREDICTIONS) as file,
            progress_bar(len(images), "classifying") as show_progress,
            contextlib.closing(batches),
        ):
            for batch in batches:
                if report.first_inference_ms is None and batch.predictions:
                    report.first_inference_ms = milliseconds_since_process_start()
                with deferred_interrupts():
                    file.add(batch.predictions)
                    tally.add(batch)
                show_progress(batch.indices.stop)
    finally:
        with deferred_interrupts():
            if executable.metadata["trained"] and tally.confusion is not None and tally.num_images:
                accuracy = Accuracy.of(tally.confusion, tally.top5_hits, images.class_names or ())
            report.measure(timeline.summary(), tally.num_images, tally.skipped, accuracy)
            report.each_process = [{"num_images": count} for count in tally.by_process]
            if isinstance(executable, Cards):
                report.measure_cards(executable, timeline)
                is_any_left = not all(card.ended for card in executable.cards)
                for card in executable.cards:
                    if card.ended and card.is_ready and is_any_left:
                        add_note(f"card {card.index} {card.ended}: its batches went to the others", report)
    for note in tally.notes():
        add_note(note, report)
    if accuracy is not None and tally.confusion is not None:
        title = f"{executable.name}, {report.precision}: top-1 {accuracy.top1:.2%} of {accuracy.num_images} images"
        write_accuracy(output_dir, accuracy, tally.confusion, title)


def _note_padding(num_images: int, executable: Executable | Cards, report: Report) -> None:
    """Notes that at least half of the only launch is padding, where the mesh lets a smaller one hold all images."""
    num_devices = executable.mesh_shape.num_devices  # of which a multiple lets the model axis cut samples
    fitting = -(-num_images // num_devices) * num_devices
    if 2 * num_images <= executable.batch_size and fitting < executable.batch_size:
        padding = executable.batch_size - num_images
        add_note(
            f"of {executable.batch_size} images of a launch {padding} are padding: --batch_size {fitting} fits "
            f"{counted(num_images, 'image')}",
            report,
        )
