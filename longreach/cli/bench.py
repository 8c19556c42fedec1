"""`longreach bench WHAT`: what the systems and their operators cost on this machine."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from longreach import bench
from longreach.cli import bench_gpu
from longreach.cli.command import Command
from longreach.cli.measuring import measuring
from longreach.cli.options import add_options, build_options, listed_numbers, listed_words
from longreach.cli.table_console import table_console
from longreach.errors import InputError
from longreach.training.run_folder import machine

LENGTHS = [str(1 << exponent) for exponent in range(10, 17)]
MIXERS_HELP = "Time and peak memory of every mixer against length."
OPERATORS_HELP = "Time, memory and error of every operator beside plain torch, in one process."


def add_arguments(parser: ArgumentParser) -> None:
    """What to measure and where to write, with options of their own for each."""
    subcommands = parser.add_subcommands(required=True, dest="what", title="what to measure")
    mixers = _like(parser, MIXERS_HELP)
    subcommands.add_subcommand("mixers", mixers, help=MIXERS_HELP)
    mixers.add_argument("--mixers", nargs="+", type=str, help="Class names of the mixers; by default all.")
    mixers.add_argument("--lengths", nargs="+", type=str, default=LENGTHS, help="Lengths of the sequences.")
    _add_out(mixers, "NAME.csv, NAME.png and NAME.json (options and machine)", "mixers")
    add_options(mixers, bench.CostOptions, {})
    operators = _like(parser, OPERATORS_HELP)
    subcommands.add_subcommand("ops", operators, help=OPERATORS_HELP)
    operators.add_argument("--operators", nargs="+", type=str, help="Names of the operators; by default all.")
    _add_out(operators, "NAME.json (every round, options and machine) and NAME.png", "ops")
    lists = {"threads": {"nargs": "+", "type": int}, "quick": {"action": "store_true"}}
    add_options(operators, bench.OperatorOptions, lists)
    gpu = _like(parser, bench_gpu.HELP)
    subcommands.add_subcommand("gpu", gpu, help=bench_gpu.HELP)
    bench_gpu.add_arguments(gpu)


def _like(parser: ArgumentParser, description: str) -> ArgumentParser:
    """A parser that answers as the one above it does."""
    formatter = parser.formatter_class
    return ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False, formatter_class=formatter)


def _add_out(parser: ArgumentParser, files: str, example: str) -> None:
    parser.add_argument("--out", type=Path, help=f"Also write {files}, for example results/{example}.")


def run(parsed: Namespace) -> int:
    """Measure, print, write."""
    console = table_console()
    measure = {"mixers": _run_mixers, "ops": _run_operators, "gpu": bench_gpu.run}[parsed.what]
    for path in measure(parsed[parsed.what], console):
        console.print(f"written: {path}", soft_wrap=True)
    return 0


def _run_mixers(parsed: Namespace, console: Console) -> list[Path]:
    options = build_options(parsed, bench.CostOptions)
    names = listed_words("mixers", parsed.mixers) or bench.mixer_names()
    lengths = listed_numbers("lengths", parsed.lengths)
    if parsed.out:
        _paths(parsed.out)  # before anything is measured that could not be kept
    costs = []
    with measuring(len(names) * len(set(lengths))) as tell:
        for cost in bench.measure_mixers(names, lengths, options):
            costs.append(cost)
            tell(len(costs), f"{cost.mixer} at {cost.length:,}")
    console.print(bench.cost_tables(costs))
    return write_files(parsed.out, costs, options) if parsed.out else []


def _run_operators(parsed: Namespace, console: Console) -> list[Path]:
    options = build_options(parsed, bench.OperatorOptions)
    operators = listed_words("operators", parsed.operators)
    cases = bench.select_cases(bench.operator_cases(), operators, options)
    paths = _paths(parsed.out, "json", "png") if parsed.out else []
    costs = []
    with measuring(sum(len(case.lengths) for case in cases)) as tell:
        for cost in bench.measure_operators(cases, options):
            costs.append(cost)
            found = {(each.operator, each.case, each.length) for each in costs}
            tell(len(found), f"{cost.operator}, {cost.case}, at {cost.length:,}")
    console.print(bench.operator_table(costs))
    if not paths:
        return []
    (table, plot), found = paths, machine()
    bench.write_json(table, costs, {"options": vars(options), "machine": found, "allocator": bench.allocator()})
    bench.write_operator_plot(plot, costs, f"{found['processor']}, torch {torch.__version__}")
    return [table, plot]


def _paths(out: Path, *suffixes: str) -> list[Path]:
    """The files, whose folder is there and can be written to."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {out.parent}: {error.strerror}; name other files with --out") from error
    if not os.access(out.parent, os.W_OK):
        raise InputError(f"cannot write to {out.parent}; name other files with --out")
    return [out.with_name(f"{out.name}.{suffix}") for suffix in suffixes]


def write_files(out: Path, costs: Sequence[bench.MixerCost], options: bench.CostOptions) -> list[Path]:
    """The numbers as CSV, the plot, and what they were measured with."""
    table, plot, about = _paths(out, "csv", "png", "json")
    found = machine()
    bench.write_csv(table, costs)
    threads = options.threads or torch.get_num_threads()
    where = found["gpu"] or f"{found['processor']}, {threads} threads"
    bench.write_plot(plot, costs, f"batch {options.batch_size}, width {options.d_model}, {where}")
    about.write_text(json.dumps({"options": vars(options), "machine": found}, indent=1) + "\n")
    return [table, plot, about]


COMMAND = Command("Measure what mixers and operators cost on this machine, or what its GPU does.", add_arguments, run)
