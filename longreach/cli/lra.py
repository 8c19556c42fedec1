"""`longreach lra WHAT`: the Long Range Arena: train systems on its tasks, show the tables, measure their speed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from longreach.bench import lra
from longreach.bench.cell_run import progress_of
from longreach.cli.command import Command
from longreach.cli.measuring import measuring
from longreach.cli.options import add_options, build_options, listed_numbers, listed_words
from longreach.cli.table_console import table_console
from longreach.errors import InputError

STOPPED = 130
ALL = "all"
OUT, SPEED_OUT = Path("results/lra"), Path("results/lra-speed")
RUN_HELP = "Train systems on tasks; what is trained already is not trained again, what was stopped goes on."
TABLE_HELP = "Show what was trained beside the published numbers."
CONFIG_HELP = "Print the configuration of a system on a task, for `longreach train --config`."
SPEED_HELP = "Measure training steps a second and peak memory on bytes of text, as the paper's second table."


def add_arguments(parser: ArgumentParser) -> None:
    """What to do, with arguments of its own for each."""
    subcommands = parser.add_subcommands(required=True, dest="what", title="what to do")
    run = _add(subcommands, parser, "run", RUN_HELP)
    _add_choice(run, f"{ALL}, or one or more of them with commas between")
    _add_out(run, OUT, "Folder of the runs and tables.")
    add_options(run, lra.RunOptions, {})
    table = _add(subcommands, parser, "table", TABLE_HELP)
    _add_out(table, OUT, "Folder of the runs; table.md, table.csv and figures are written there.")
    config = _add(subcommands, parser, "config", CONFIG_HELP)
    _add_choice(config, "one of them")
    add_options(config, lra.RunOptions, {})
    speed = _add(subcommands, parser, "speed", SPEED_HELP)
    speed.add_argument("--systems", nargs="+", type=str, help="Names of the systems; by default all.")
    lengths = [str(length) for length in lra.LENGTHS]
    speed.add_argument("--lengths", nargs="+", type=str, default=lengths, help="Bytes of a text.")
    speed.add_argument("--table", action="store_true", help="Only show what is in the folder; measure nothing.")
    _add_out(speed, SPEED_OUT, "Folder of the cells, speed.md, speed.csv and speed.png; a cell in it is not measured.")
    add_options(speed, lra.SpeedOptions, {})


def _add(subcommands: Any, parser: ArgumentParser, name: str, description: str) -> ArgumentParser:
    formatter = parser.formatter_class
    added = ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False, formatter_class=formatter)
    subcommands.add_subcommand(name, added, help=description)
    return added


def _add_choice(parser: ArgumentParser, how_many: str) -> None:
    parser.add_argument("task", type=str, help=f"{how_many}: {', '.join(lra.TASKS)}.")
    parser.add_argument("system", type=str, help=f"{how_many}: {', '.join(lra.SYSTEMS)}.")


def _add_out(parser: ArgumentParser, default: Path, text: str) -> None:
    parser.add_argument("--out", type=Path, default=default, help=text)


def run(parsed: Namespace) -> int:
    """Do it."""
    chosen = parsed[parsed.what]
    console = table_console()
    if parsed.what == "config":
        options = build_options(chosen, lra.RunOptions)
        console.print(lra.config_text(chosen.task, chosen.system, options), end="", soft_wrap=True)
        return 0
    if parsed.what == "speed":
        return _speed(chosen, console)
    if parsed.what == "run" and not _train(chosen):
        return STOPPED
    return _show(chosen.out, console)


def _train(chosen: Namespace) -> bool:
    """Train what is missing, task by task; False if a signal stopped it."""
    options = build_options(chosen, lra.RunOptions)
    cells = [(task, system) for task in _names(chosen.task, lra.TASKS) for system in _names(chosen.system, lra.SYSTEMS)]
    for task, system in cells:
        lra.configure(task, system, options)  # a mistake in any of them is found before the first is trained
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    for number, (task, system) in enumerate(cells, start=1):
        known = progress_of(chosen.out / task / system)
        progress.print(f"run {number} of {len(cells)}: {system} on {task}{known}")
        if lra.run_system(task, system, options, chosen.out) is None:
            progress.print("stopped; the same command goes on")
            return False
        lra.write_files(lra.read_results(chosen.out), chosen.out)
    return True


def _names(given: str, known: Iterable[str]) -> list[str]:
    """All, or those that are named; raises InputError if none is."""
    names = list(known) if given == ALL else [name for name in given.split(",") if name]
    if not names:
        raise InputError(f"{given!r} names nothing; choose {ALL}, or from {', '.join(known)}")
    return names


def _show(out: Path, console: Console) -> int:
    results = lra.read_results(out)
    console.print(lra.tables(results))
    if not results:
        console.print(f"no run is finished in {out}", soft_wrap=True)
        return 0
    for path in lra.write_files(results, out):
        console.print(f"written: {path}", soft_wrap=True)
    return 0


def _speed(chosen: Namespace, console: Console) -> int:
    options = build_options(chosen, lra.SpeedOptions)
    systems = listed_words("systems", chosen.systems) or list(lra.SYSTEMS)
    lengths = listed_numbers("lengths", chosen.lengths)
    if not chosen.table:
        with measuring(len(systems) * len(set(lengths))) as tell:
            for number, cell in enumerate(lra.measure_speed(systems, lengths, options, chosen.out), start=1):
                tell(number, f"{cell.system} at {cell.length:,}")
    found = lra.read_speed(chosen.out)
    if found is None:
        raise InputError(f"nothing was measured in {chosen.out} yet; leave --table out")
    console.print(lra.speed_tables(found.cells))
    threads = found.options["threads"] or found.machine["threads"]
    where = found.machine["gpu"] or f"{found.machine['processor']}, {threads} threads"
    written = lra.write_speed(found.cells, chosen.out, f"batch {found.options['batch_size']}, {where}")
    for path in written:
        console.print(f"written: {path}", soft_wrap=True)
    return 0


COMMAND = Command("Train on the Long Range Arena, show its tables, measure speed.", add_arguments, run)
