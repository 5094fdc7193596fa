"""Tables of measurements on the terminal."""

from rich.table import Table

from cambrian.commands.console import show_table

_PIPE_WIDTH = 140  # for output to files and pipes, which have no width


def make_table(title: str, words: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    """Returns an empty table with columns for words, then columns for numbers."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in words:
        table.add_column(column)
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def print_table(table: Table) -> None:
    show_table(table, width=_PIPE_WIDTH)
