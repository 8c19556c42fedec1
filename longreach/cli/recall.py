"""`longreach recall TASK`: train systems on a synthetic task, cell by cell, and show the table of the papers."""

from itertools import product
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from longreach.bench import recall
from longreach.bench.cell_run import progress_of
from longreach.cli.command import Command
from longreach.cli.options import add_options, build_options, listed_numbers, listed_words
from longreach.cli.table_console import table_console
from longreach.errors import InputError

STOPPED = 130
DEFAULT_LENGTH = 128


def add_arguments(parser: ArgumentParser) -> None:
    """Which cells, how they are trained, and where they go."""
    parser.add_argument("task", type=str, help=f"One of {', '.join(recall.TASKS)}.")
    listed = "+"
    parser.add_argument("--systems", nargs=listed, type=str, help=f"Of {', '.join(recall.SYSTEMS)}; by default all.")
    parser.add_argument("--lengths", nargs=listed, type=str, default=[str(DEFAULT_LENGTH)], help="For example 128,512.")
    parser.add_argument(
        "--vocabulary", nargs=listed, type=str, help="For example 10,20 (for functions: numbers of a point)."
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/recall"),
        help="Folder of the cells, table.md, table.csv and plots; a cell that is in it already is not trained again.",
    )
    parser.add_argument("--table", action="store_true", help="Only show what is in the folder; train nothing.")
    add_options(parser, recall.RecallOptions, {})


def run(parsed: Namespace) -> int:
    """Train what is missing, after each cell write the table; show it at the end."""
    options = build_options(parsed, recall.RecallOptions)
    cells = _cells(parsed, options)
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    finished = True
    for number, cell in enumerate([] if parsed.table else cells, start=1):
        progress.print(f"cell {number} of {len(cells)}: {cell.name}{progress_of(parsed.out / cell.name)}")
        result = recall.run_cell(cell, options, parsed.out)
        if result is None:
            finished = False
            progress.print("stopped; the same command goes on")
            break
        recall.write_files(recall.read_results(parsed.out), parsed.out)
    _show(parsed, table_console())
    return 0 if finished else STOPPED


def _show(parsed: Namespace, console: Console) -> None:
    results = recall.read_results(parsed.out)
    if not results:
        console.print(f"no cell is finished in {parsed.out}", soft_wrap=True)
        return
    console.print(recall.tables(results))
    for path in recall.write_files(results, parsed.out):
        console.print(f"written: {path}", soft_wrap=True)


def _cells(parsed: Namespace, options: recall.RecallOptions) -> list[recall.Cell]:
    """All combinations, the longest last; a mistake in any of them is found before the first is trained."""
    kind = recall.kind_of(parsed.task)
    systems = listed_words("systems", parsed.systems) or list(recall.SYSTEMS)
    lengths = sorted(listed_numbers("lengths", parsed.lengths))
    if kind.size is None and parsed.vocabulary:
        raise InputError(f"the vocabulary of {parsed.task} is given by the task; leave --vocabulary out")
    sizes: list[int | None] = [*listed_numbers("vocabulary", parsed.vocabulary)]
    cells = [
        recall.Cell(parsed.task, system, length, size)
        for length, size, system in product(lengths, sizes or [kind.default_size], systems)
    ]
    for cell in cells:
        recall.configure(cell, options)
    return cells


COMMAND = Command("Train systems on a synthetic recall task and show the papers' table.", add_arguments, run)
