"""The output folder of a command: its files appear whole, and never mix two runs."""

import contextlib
import csv
import fcntl
import io
import json
import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import jax

from cambrian.commands.configuration import Configuration
from cambrian.commands.console import print_note
from cambrian.engine.runtime.memory import peak_host_memory_bytes
from cambrian.sharding import OutOfMemory, UsageError
from cambrian.sharding.host.files import replace_file

REPORT = "report.json"
PREDICTIONS, CLASSES, CONFUSION = "predictions.csv", "classes.csv", "confusion.png"
JOB, ROWS = "job.json", "rows"  # of a batch job; its rows stay when it is started again
METRICS, CURVES, MODEL = "metrics.csv", "curves.png", "model"
LOADGEN_LOGS = tuple(f"mlperf_log_{name}" for name in ("summary.txt", "detail.txt", "accuracy.json", "trace.json"))
TRAINED_PRECISIONS = ("float32", "bfloat16")  # in which a training evaluates its weights
# Every file that a run or a training writes, but for its checkpoints.
RUN_RESULTS = (PREDICTIONS, CLASSES, CONFUSION, *LOADGEN_LOGS)
RESULTS = (
    *(*RUN_RESULTS, METRICS, CURVES),
    *(f"{MODEL}/{name}" for name in ("config.json", "preprocessor_config.json", "model.safetensors")),
    *(name.replace(".", f"_{end}.") for name in (CLASSES, CONFUSION) for end in TRAINED_PRECISIONS),
)

# Importing Matplotlib, after this, may build a font cache, of which the user needn't know.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


class WrittenReport(Protocol):
    """A report with these fields, and `write`, which replaces report.json in one step."""

    notes: list[str]
    status: str
    failure_reason: str | None
    peak_host_memory_bytes: int | None

    def write(self, output_dir: Path) -> Path: ...


def add_note(note: str, report: WrittenReport) -> None:
    """Prints a deviation from the request and adds it to the report, once."""
    if note not in report.notes:
        print_note(note)
        report.notes.append(note)


@contextlib.contextmanager
def output_folder(configuration: Configuration, of_batch: bool = False) -> Iterator[Path]:
    """Holds the output folder of a command inside this context: the requested one, or a new one under runs/.

    Folders that are made for it and stay empty are removed at the end.

    Args:
      of_batch: whether the command is a batch job, which alone may use the folder of one.

    Raises:
      UsageError: if it can't be written to, another process holds it, it holds a batch job, it holds the weights, which
        an earlier training may have left there, or it lies in a folder of images that are read.
    """
    what = "artifact" if configuration.artifact else configuration.mesh  # whose mesh is its own
    path = Path(configuration.output_dir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{what}")
    configuration.check_output(path)
    weights = configuration.weights
    if weights not in ("auto", "random") and Path(weights).resolve().is_relative_to(path.resolve()):
        raise UsageError(f"output_dir must be a folder without the weights that are read, got {path} with {weights}")
    with _writable(path):
        if (path / JOB).exists() and not of_batch:
            raise UsageError(f"output_dir must be a folder without a batch job, got {path} with {JOB}")
        made = [folder for folder in path.parents if not folder.exists()]
        if not path.exists() or not configuration.output_dir:
            made.insert(0, path)
    if not configuration.output_dir:
        path = made[0] = _make_new(path)
    try:
        with held_folder(path):
            yield path
    finally:
        with contextlib.suppress(OSError):  # of a folder that isn't empty
            for folder in made:
                folder.rmdir()


def _make_new(path: Path) -> Path:
    """Makes a folder of that name, or with a number behind it, that no other process has made."""
    unused, number = path, 1
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with _writable(path), contextlib.suppress(FileExistsError):
            unused.mkdir(parents=True)
            return unused
        number += 1
        unused = path.with_name(f"{path.name}-{number}")


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"output_dir must be a writable folder, got {path}: {error.strerror}") from None


@contextlib.contextmanager
def held_folder(path: Path) -> Iterator[None]:
    """Makes a folder and locks it for this process; the lock ends with the process.

    Raises:
      UsageError: if it can't be written to, or another process holds it.
    """
    with _writable(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # fails now rather than after minutes of building
            descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"output_dir must be a folder of no other running command, got {path}") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def reporting(
    report: WrittenReport, output_dir: Path, hint: str = "", removed: Iterable[str] = RESULTS
) -> Iterator[Callable[[], None]]:
    """Keeps `output_dir`/report.json true to the run inside this context, however that ends.

    Yields a function to call before the first result is written: the report replaces that of an earlier run, with
    status `running`, and then the earlier run's results are removed; a folder without such a report is somebody else's,
    and nothing is removed there. On exit the report has the final status. A process that is killed leaves `running`.
    A UsageError before the first result leaves the folder as it was. The peak of this process's memory is added to what
    the report has of other processes.

    Args:
      hint: printed beside the folder after a failure.
      removed: which results of an earlier run are removed.
    """
    started = False

    def start() -> None:
        nonlocal started
        if started:
            return
        report.status, had_report = "running", _holds_report(output_dir)
        with _writable(output_dir):
            report.write(output_dir)
        started = True
        for name in removed if had_report else ():
            (output_dir / name).unlink(missing_ok=True)

    try:
        yield start
        start()
    except BaseException as error:
        if isinstance(error, UsageError) and not started:
            raise
        try:
            with deferred_interrupts():
                start()
                report.status, report.failure_reason = failure(error)
                report.peak_host_memory_bytes = (report.peak_host_memory_bytes or 0) + peak_host_memory_bytes()
                report.write(output_dir)
        except (OSError, UsageError) as unwritten:  # what ended the run is what the user must know
            print_note(f"{output_dir / REPORT} isn't up to date: {unwritten}")
        finished = any((output_dir / name).exists() for name in (ROWS, *RESULTS))
        if finished or (output_dir / REPORT).exists():
            print(f"{'finished results are' if finished else 'the report is'} in {output_dir}{hint}", file=sys.stderr)
        raise
    with deferred_interrupts():
        report.status = "ok"
        report.peak_host_memory_bytes = (report.peak_host_memory_bytes or 0) + peak_host_memory_bytes()
        report.write(output_dir)


def _holds_report(output_dir: Path) -> bool:
    """Whether an earlier run or training has left its report in the folder."""
    try:
        report = json.loads((output_dir / REPORT).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(report, dict) and {"flags", "status"} <= report.keys()


def failure(error: BaseException) -> tuple[str, str]:
    """Returns the `status` and `failure_reason` for the report of a command that an exception ended."""
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "interrupted by the user"
    exhausted = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    if exhausted or isinstance(error, (OutOfMemory, MemoryError)):
        return "out_of_memory", reason
    return "failed", reason


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Delays Ctrl-C and SIGTERM until the end of this context, whose effects must be complete. Main thread only.

    What the process ignores, as Ctrl-C in a job that a shell starts in the background, it goes on to ignore.
    """
    received = []
    handlers = {
        number: signal.signal(number, lambda *signalled: received.append(signalled))
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """The rows as CSV, each ended by a line feed."""
    lines: list[str] = []
    # The writer calls `write` once a row. It quotes line feeds and carriage returns since its rows end with both.
    csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n").writerows(rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def write_figure(figure: Any, path: Path, **options: Any) -> None:
    """Writes a Matplotlib figure, in the format of the path's suffix, in one step."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        # Of names in a script that the font lacks, boxes are drawn.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(data, format=path.suffix.removeprefix("."), **options)
    replace_file(path, data.getvalue())
