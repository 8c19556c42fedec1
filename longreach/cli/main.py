"""`longreach COMMAND ...`: parse, run, and turn every mistake that a user can mend into a message.

Exit status: 0 done, 1 training diverged, 2 a mistake in what was given, 130 stopped by a signal.
"""

import os
import re
import sys
from argparse import Action, ArgumentError
from collections.abc import Sequence

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from rich.console import Console

from longreach import __version__
from longreach.cli import bench, convert, doctor, evaluate, generate, lra, make_data, recall, train
from longreach.cli.command import Command
from longreach.cli.mistakes import explain
from longreach.errors import InputError
from longreach.training import DivergenceError

DIVERGED, MISTAKE, STOPPED = 1, 2, 130

OURS = re.compile(r"longreach\.(mixers|models|tasks)\.")

COMMANDS: dict[str, Command] = {
    "train": train.COMMAND,
    "evaluate": evaluate.COMMAND,
    "generate": generate.COMMAND,
    "convert": convert.COMMAND,
    "bench": bench.COMMAND,
    "make-data": make_data.COMMAND,
    "recall": recall.COMMAND,
    "lra": lra.COMMAND,
    "doctor": doctor.COMMAND,
}


class _Help(DefaultHelpFormatter):
    """Lists of known classes name ours only: torch alone has hundreds of modules."""

    def _get_help_string(self, action: Action) -> str:
        text = super()._get_help_string(action)
        head, separator, classes = text.partition(", known subclasses: ")
        ours = [name for name in re.findall(r"[\w.]+", classes) if OURS.match(name)]
        return f"{head}{separator}{', '.join(ours)})" if separator else text


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.path.append(os.getcwd())  # a user's own classes are named by their import path
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    try:
        parsed = make_parser().parse_args(list(arguments))
        return COMMANDS[parsed.subcommand].run(parsed[parsed.subcommand])
    except ArgumentError as error:
        return _fail(explain(error, COMMANDS), MISTAKE)
    except InputError as error:
        return _fail(str(error), MISTAKE)
    except DivergenceError as error:
        return _fail(str(error), DIVERGED)
    except KeyboardInterrupt:
        return _fail("stopped at once", STOPPED)


def make_parser() -> ArgumentParser:
    """The parser of all commands."""
    parser = _parser("Sequence models for very long contexts.", prog="longreach", version=__version__)
    subcommands = parser.add_subcommands(required=True, title="commands")
    for name, command in COMMANDS.items():
        subparser = _parser(command.help)
        subcommands.add_subcommand(name, subparser, help=command.help)
        command.add_arguments(subparser)
    return parser


def _parser(description: str, *, prog: str | None = None, version: str | None = None) -> ArgumentParser:
    return ArgumentParser(
        prog=prog,
        description=description,
        version=version,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=_Help,
    )


def _fail(message: str, status: int) -> int:
    """Say what is wrong; among several processes, which of them found it."""
    who = f" (process {os.environ['RANK']})" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"longreach{who}: error: {message}")
    return status
