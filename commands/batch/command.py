"""`--mode batch`: classifies pictures on a Ray cluster, each exactly once, however often the job is killed.

Ray runs a task at least once: it repeats those of a process or node that died, and may have had the result of one. So
nothing depends on how often a part is classified. The workers only compute. This process alone writes, each part to a
file of its own, which appears whole; a part that comes twice is written once, and in the end every part must be there.
Started again, the job gives Ray the parts whose files are missing.
"""

import contextlib
import dataclasses
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cambrian.commands.accuracy.accuracy import Accuracy, write_accuracy
from cambrian.commands.batch.cluster import cluster, require_ray, set_environment, share_cluster
from cambrian.commands.configuration import Configuration
from cambrian.commands.console import counted
from cambrian.commands.flags import Flags
from cambrian.commands.images import ModelImages
from cambrian.commands.images.given import GivenImages
from cambrian.commands.output import add_note, deferred_interrupts, output_folder, reporting
from cambrian.commands.run.classify import Tally, images_of
from cambrian.engine.artifact.fingerprint import versions
from cambrian.engine.artifact.layout import read_artifact
from cambrian.engine.artifact.manifest import Manifest
from cambrian.sharding import UsageError
from cambrian.sharding.host.files import replace_file

if TYPE_CHECKING:
    from cambrian.commands.batch.job import Job
    from cambrian.commands.batch.parts import Part
    from cambrian.commands.batch.report import BatchReport
    from cambrian.commands.batch.worker import Finished


def batch_command(configuration: Configuration, flags: Flags) -> None:
    """Runs or continues a job, and prints its results.

    Raises:
      UsageError: if the request makes no sense, or `output_dir` holds something else than a part of this job.
      The exception that ended the job, after the report was written; finished parts stay.
    """
    if not configuration.artifact:
        raise UsageError("mode batch runs an artefact: expected --artifact DIRECTORY, which --mode compile makes")
    set_environment()
    require_ray()
    # These import pyarrow, a dependency of Ray Data.
    from cambrian.commands.batch.job import Job
    from cambrian.commands.batch.parts import ParquetRows, make_parts, open_images
    from cambrian.commands.batch.report import BatchReport, print_batch_table

    manifest, _ = read_artifact(Path(configuration.artifact), None)
    source, notes = open_images(configuration.data, configuration.split)
    if isinstance(source, ParquetRows) and "split" in flags.given:
        raise UsageError(f"--split is of a folder of images: leave it out for Parquet files, got {configuration.split}")
    images, more_notes = images_of(manifest, source)
    parts = make_parts(source, manifest.input_spec.shape[0])
    report = BatchReport(
        flags.reported, versions(), threads=configuration.threads, workers=flags["workers"], data=images.description
    )
    report.describe(manifest, configuration.artifact)
    with output_folder(configuration, of_batch=True) as output_dir:
        report.flags["output_dir"] = str(output_dir.absolute())
        job = Job.of(output_dir, parts, manifest)
        with reporting(report, output_dir, "; the same command with this --output_dir goes on") as start:
            for note in (*notes, *more_notes):
                add_note(note, report)
            missing, finished = job.missing(), []
            report.num_parts, report.num_parts_before = len(parts), len(parts) - len(missing)
            try:
                with contextlib.closing(_classify(missing, images, manifest, configuration, flags)) as parts_finished:
                    for part in parts_finished:
                        job.begin()
                        start()
                        with deferred_interrupts():
                            replace_file(job.file(part.name), part.content)
                        finished.append(dataclasses.replace(part, content=b""))
            finally:
                report.add(finished)
                tally, num_unreadable = _count(job, images, manifest)
                report.num_images, report.num_unreadable = tally.num_images, num_unreadable
            start()
            if job.missing() or tally.num_images + num_unreadable != len(images):
                raise RuntimeError(
                    f"expected a row for each of {counted(len(images), 'image')}, got {tally.num_images} and "
                    f"{num_unreadable} errors, with {counted(len(job.missing()), 'part')} missing"
                )
            _finish(tally, images, manifest, report, output_dir)
        print_batch_table(report)
        print(f"report and rows in {output_dir}")


def _classify(
    parts: Sequence["Part"], images: ModelImages, manifest: Manifest, configuration: Configuration, flags: Flags
) -> Generator["Finished", None, None]:
    from cambrian.commands.batch.pool import classify_parts
    from cambrian.commands.batch.shipped import ship

    if not parts:
        return
    with cluster(flags["ray_address"]):
        yield from classify_parts(
            parts,
            ship(configuration.artifact, through_object_store=bool(flags["ray_address"])),
            dataclasses.replace(images, source=GivenImages((), ())),
            workers=flags["workers"],
            threads=configuration.threads,
            share=share_cluster(flags["workers"], manifest),
            signing_key=configuration.signing_key and os.path.abspath(configuration.signing_key),
        )


def _count(job: "Job", images: ModelImages, manifest: Manifest) -> tuple[Tally, int]:
    """Counts the images of all finished parts, this run's and earlier ones', and those with an error."""
    from cambrian.commands.batch.rows import tally_rows

    tally = Tally.of(manifest, images)
    return tally, sum(tally_rows(tally, job.file(part.name)) for part in job.finished())


def _finish(tally: Tally, images: ModelImages, manifest: Manifest, report: "BatchReport", output_dir: Path) -> None:
    if report.num_unreadable:
        add_note(f"{counted(report.num_unreadable, 'image')} can't be read: see the column `error`", report)
    for note in tally.notes():
        add_note(note, report)
    if manifest.metadata["trained"] and tally.confusion is not None and tally.num_images:
        accuracy = Accuracy.of(tally.confusion, tally.top5_hits, images.class_names or ())
        report.measure(accuracy)
        title = f"{report.model}, {report.precision}: top-1 {accuracy.top1:.2%} of {accuracy.num_images} images"
        write_accuracy(output_dir, accuracy, tally.confusion, title)
