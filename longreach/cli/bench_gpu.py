"""`longreach bench gpu`: everything that docs/gpu.md says about speed, measured on this machine's GPU."""

import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from longreach.bench import gpu
from longreach.cli.measuring import measuring
from longreach.cli.options import listed_words
from longreach.errors import InputError
from longreach.training.run_folder import machine

HELP = "Kernels, training and generation on this machine's GPU, in less than eight minutes."
SECONDS = 420.0


class Setting(NamedTuple):
    """Where is measured, and how much."""

    meter: gpu.Meter
    sizes: gpu.Sizes
    name: str


def add_arguments(parser: ArgumentParser) -> None:
    """What to measure, for how long, and where to write."""
    names = ", ".join(gpu.SECTIONS)
    parser.add_argument("--sections", nargs="+", type=str, help=f"Of {names}; by default all.")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="No measurement begins later; what is most important goes first."
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results/gpu"),
        help="Folder of results.json, which every measurement is added to, tables.md and a figure for each section.",
    )


def setting() -> Setting:
    """The GPU.  Raises InputError where there is none."""
    if not torch.cuda.is_available():
        raise InputError(
            "torch sees no GPU here, and `bench gpu` measures nothing else; it needs an NVIDIA GPU with its driver and "
            "a torch that is built for CUDA. `bench ops` and `bench mixers` measure on the processor"
        )
    return Setting(gpu.Meter(), gpu.Sizes(), torch.cuda.get_device_name())


def run(parsed: Namespace, console: Console) -> list[Path]:
    """Measure; print and write what was found, also when stopped; the files."""
    meter, sizes, name = setting()
    if parsed.seconds <= 0:
        raise InputError(f"--seconds {parsed.seconds:g} leaves no time; the default is {SECONDS:g}")
    sections = gpu.check_sections(listed_words("sections", parsed.sections) or list(gpu.SECTIONS))
    plan = gpu.Plan(sections, sizes, meter, time.time() + parsed.seconds)
    about = {"machine": machine(), "sizes": dataclasses.asdict(sizes), "seconds": parsed.seconds}
    parsed.out.mkdir(parents=True, exist_ok=True)
    results: list[gpu.Result] = []
    written = [gpu.write_results(parsed.out, results, about)]
    try:
        with measuring(len(plan.cells())) as tell:
            for result in gpu.measure_apart(plan):
                results.append(result)
                gpu.write_results(parsed.out, results, about)
                tell(len(results), f"{result.section}, {result.case}, {result.side} at {result.length:,}")
    finally:
        console.print(gpu.tables(results))
        written += gpu.write_report(parsed.out, results, f"{name}, torch {torch.__version__}")
    return written
