"""`longreach make-data WHAT OUT`: make a data set in the format that its users know, one sub-command for each."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import Progress, TaskID

from longreach.cli.command import Command
from longreach.cli.options import add_options, build_options
from longreach.disk import writing
from longreach.errors import InputError
from longreach.tasks.lra.listops import ListOpsData, write_listops
from longreach.tasks.lra.pathfinder_generation import PathfinderRecipe, write_pathfinder


class DataSet(NamedTuple):
    """A row of the table of data sets; its name is the key."""

    help: str
    """One line."""
    options: type
    """A dataclass: what can be chosen."""
    write: Callable[[Path, Any, Callable[[int, int], None]], Iterator[tuple[str, int]]]
    """Writes into a folder as these options say, and calls the last argument with the number of examples done and that
    of all; tells of every file or folder its name and its number of examples when it is complete."""
    resumes: bool = False
    """Whether it goes on with what an earlier run left behind."""


DATA_SETS: dict[str, DataSet] = {
    "listops": DataSet(
        "ListOps of the Long Range Arena: expressions and their values, as .tsv files.", ListOpsData, write_listops
    ),
    "pathfinder": DataSet(
        "Pathfinder and Path-X of the Long Range Arena: images and metadata; goes on where it was stopped.",
        PathfinderRecipe,
        write_pathfinder,
        resumes=True,
    ),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Which data set and where it goes, with options of its own for each."""
    subcommands = parser.add_subcommands(required=True, dest="what", title="data sets")
    for name, data_set in DATA_SETS.items():
        subparser = ArgumentParser(
            description=data_set.help,
            exit_on_error=False,
            allow_abbrev=False,
            formatter_class=parser.formatter_class,
        )
        subcommands.add_subcommand(name, subparser, help=data_set.help)
        condition = (
            "it is made, or is one that is partly written" if data_set.resumes else "it is made, or must be empty"
        )
        subparser.add_argument("out", type=Path, help=f"Folder to write to; {condition}.")
        add_options(subparser, data_set.options, {})


def run(parsed: Namespace) -> int:
    """Make the data and tell what was written."""
    data_set, chosen = DATA_SETS[parsed.what], parsed[parsed.what]
    options = build_options(chosen, data_set.options)
    out: Path = chosen.out
    with writing(out):
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not data_set.resumes)):
            raise InputError(f"{out} exists already and is not an empty folder; name another one")
        out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(f"making {parsed.what}", total=None)
        for name, count in data_set.write(out, options, partial(_show, progress, bar)):
            console.print(f"written: {out / name}, {count:,} examples")
    return 0


def _show(progress: Progress, bar: TaskID, done: int, total: int) -> None:
    progress.update(bar, completed=done, total=total)


COMMAND = Command("Make a data set of the Long Range Arena.", add_arguments, run)
