"""A table before it is drawn: for people in a terminal, or as Markdown."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table


class Grid(NamedTuple):
    """Text in rows and columns; the first column says what a row is."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def table(self) -> Table:
        """For a terminal, without the title."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(self.columns):
            cells = [len(row[number]) for row in self.rows]
            if number:  # headings may wrap, numbers must not
                table.add_column(column, justify="right", min_width=max(cells, default=0))
            else:
                table.add_column(column)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> list[str]:
        """Its lines as Markdown, with the title, and an empty one behind."""
        lines = [self.columns, ["---", *["--:"] * (len(self.columns) - 1)], *self.rows]
        return [self.title, "", *map(_line, lines), ""]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
