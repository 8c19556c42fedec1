"""The command line: one module per command, and the table of them in `main`."""

from longreach.cli.main import main

__all__ = ["main"]
