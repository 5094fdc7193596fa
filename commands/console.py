"""Prints notes on standard error, tables on standard output, and progress on a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn
    from rich.table import Table

# Rich takes a tenth of a second to import; the first result doesn't wait for it.


def print_note(note: str) -> None:
    """Prints a deviation from the request, in one line."""
    print(f"note: {' '.join(note.splitlines())}", file=sys.stderr, flush=True)


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, such as `1 file` or `2 files`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shown_ms(milliseconds: float) -> str:
    """Writes a time with at least two digits."""
    return f"{milliseconds:.0f}" if milliseconds >= 10 else f"{milliseconds:.2g}"


def show_table(table: "Table", width: int = 120) -> None:
    """Prints a table on standard output, without spaces at the ends of lines.

    Args:
      width: width in columns where output doesn't go to a terminal.
    """
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)  # paths may look like markup
    if not console.is_terminal:
        console.width = width
    for column in table.columns:
        column.overflow = "fold"  # else a narrow terminal cuts words off
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


@contextlib.contextmanager
def progress_bar(total: int, description: str, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on standard error if that is a terminal; yields a function that sets the number done.

    With a total of 0 there is none.

    Lines printed meanwhile appear above it, those on standard output if that is a terminal, too.
    """
    if not total or not _is_terminal(sys.stderr):
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}, left"),
        TimeRemainingColumn(),
    )
    with _progress(*columns) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextlib.contextmanager
def elapsed_time(description: str) -> Iterator[None]:
    """Shows on standard error, if that is a terminal, for how long something has been going on."""
    if not _is_terminal(sys.stderr):
        yield
        return
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with _progress(*columns, refresh_per_second=2) as progress:  # what is measured meanwhile needs the cores
        progress.add_task(description, total=None)
        yield


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # None in a process without the stream


def _progress(*columns: "ProgressColumn", refresh_per_second: float = 10) -> "Progress":
    from rich.console import Console
    from rich.progress import Progress

    return Progress(
        *columns,
        console=Console(stderr=True),
        refresh_per_second=refresh_per_second,
        transient=True,
        redirect_stdout=_is_terminal(sys.stdout),  # what goes to a file must get there
    )
