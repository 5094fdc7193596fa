"""How measurements are shown."""

from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 140  # of a file or another program, which have none


def make_table(title: str, words: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    """An empty table with columns of words, then columns of numbers."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in words:
        table.add_column(column)
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def print_table(table: Table) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(table)
