"""Where commands print wide tables."""

import sys

from rich.console import Console

FILE_WIDTH = 200


def table_console() -> Console:
    """As wide as the terminal; where there is none, as in a file or a pipe, so wide that no cell is broken."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
