"""What is printed: notes on standard error, tables on standard output, progress on a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# rich takes a tenth of a second to import, which the first result needn't wait for.


def print_note(note: str) -> None:
    """Tells the user about a deviation from the request."""
    print(f"note: {note}", file=sys.stderr, flush=True)


def make_console(width: int = 120) -> "Console":
    """A console on standard output for plain text.

    Args:
      width: where output goes to a file or another program, which have none.
    """
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)  # paths may look like markup
    if not console.is_terminal:
        console.width = width
    return console


@contextlib.contextmanager
def progress_bar(total: int, description: str, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, where that is a terminal; gives a function that sets how much is done.

    Lines printed on standard output meanwhile stand above it.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}, left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.update(task, completed=done)
