"""A table before it is drawn: for people in a terminal, or as Markdown."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table


class Grid(NamedTuple):
    """Text in rows and columns; the first column says what a row is."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def table(self) -> Table:
        """For a terminal, without the title."""
        table = Table()
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left", no_wrap=number == 0)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> list[str]:
        """Its lines as Markdown, with the title, and an empty one behind."""
        lines = [self.columns, ["---", *["--:"] * (len(self.columns) - 1)], *self.rows]
        return [self.title, "", *map(_line, lines), ""]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
