"""What a command of the command line is."""

from collections.abc import Callable
from typing import NamedTuple

from jsonargparse import ArgumentParser, Namespace


class Command(NamedTuple):
    """A row of the table of commands; its name is the key."""

    help: str
    """One line for `longreach --help`."""
    add_arguments: Callable[[ArgumentParser], None]
    """Declares the arguments, with types and help."""
    run: Callable[[Namespace], int]
    """Does it with the parsed arguments and returns the exit status."""
