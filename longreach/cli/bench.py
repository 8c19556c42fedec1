"""`longreach bench WHAT`: what the systems cost on this machine."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from longreach.bench import CostOptions, MixerCost, cost_tables, measure_mixers, mixer_names, write_csv, write_plot
from longreach.cli.command import Command
from longreach.cli.options import add_options, build_options
from longreach.training.run_folder import machine

LENGTHS = [1 << exponent for exponent in range(10, 17)]


def add_arguments(parser: ArgumentParser) -> None:
    """What to measure, where to write, and the fields of CostOptions."""
    parser.add_argument("what", choices=["mixers"], help="mixers: time and peak memory of every mixer against length.")
    parser.add_argument("--mixers", nargs="+", type=str, help="Class names of the mixers; by default all.")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="Lengths of the sequences.")
    parser.add_argument(
        "--out",
        type=Path,
        help="Also write NAME.csv, NAME.png and NAME.json (options and machine), for example results/mixers.",
    )
    add_options(parser, CostOptions, {})


def run(parsed: Namespace) -> int:
    """Measure, print, write."""
    options = build_options(parsed, CostOptions)
    names = parsed.mixers or mixer_names()
    costs = _measure(names, parsed.lengths, options)
    console = Console(highlight=False, markup=False)
    console.print(cost_tables(costs))
    if parsed.out:
        for path in write_files(parsed.out, costs, options):
            console.print(f"written: {path}", soft_wrap=True)
    return 0


def _measure(names: Sequence[str], lengths: Sequence[int], options: CostOptions) -> list[MixerCost]:
    """With a progress bar on stderr, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    costs = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("measuring", total=len(names) * len(set(lengths)))
        for cost in measure_mixers(names, lengths, options):
            costs.append(cost)
            progress.update(task, advance=1, description=f"{cost.mixer} at {cost.length:,}")
    return costs


def write_files(out: Path, costs: Sequence[MixerCost], options: CostOptions) -> list[Path]:
    """The numbers as CSV, the plot, and what they were measured with."""
    out.parent.mkdir(parents=True, exist_ok=True)
    table, plot, about = (out.with_name(f"{out.name}.{suffix}") for suffix in ("csv", "png", "json"))
    found = machine()
    write_csv(table, costs)
    threads = options.threads or torch.get_num_threads()
    where = found["gpu"] or f"{found['processor']}, {threads} threads"
    write_plot(plot, costs, f"batch {options.batch_size}, width {options.d_model}, {where}")
    about.write_text(json.dumps({"options": vars(options), "machine": found}, indent=1) + "\n")
    return [table, plot, about]


COMMAND = Command("Measure time and memory of every mixer against length.", add_arguments, run)
