"""`longreach evaluate`: bits per byte of a trained model over whole documents, and against how much context it gets."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from longreach.cli.command import Command
from longreach.cli.options import add_options, build_options
from longreach.inference.evaluate_run import HELD_OUT, RunEvaluation, evaluate_run
from longreach.inference.evaluation import EvaluationOptions
from longreach.inference.report import report_tables
from longreach.inference.trained import TrainedModel, load_trained
from longreach.training.run_folder import CheckpointName, machine


def add_arguments(parser: ArgumentParser) -> None:
    """Which run, on which data, and the fields of EvaluationOptions."""
    parser.add_argument("run", type=Path, help="Folder of the run.")
    parser.add_argument(
        "data", type=Path, nargs="*", default=[], help="Files or folders of text; by default what training held out."
    )
    parser.add_argument("--checkpoint", type=CheckpointName, default="best", help="Which weights.")
    add_options(parser, EvaluationOptions, {"contexts": {"type": int, "nargs": "+"}})


def run(parsed: Namespace) -> int:
    """Evaluate and print the tables."""
    options = build_options(parsed, EvaluationOptions)
    trained = load_trained(parsed.run, parsed.checkpoint)
    evaluate_and_show(trained, parsed.data, options, checkpoint=parsed.checkpoint)
    return 0


def evaluate_and_show(
    trained: TrainedModel, data: Sequence[Path], options: EvaluationOptions, *, checkpoint: str
) -> RunEvaluation:
    """Evaluate with a progress bar on stderr; tables on stdout, and where they were written."""
    about = {
        "run": str(trained.folder.path),
        "checkpoint": checkpoint,
        "data": [str(path) for path in data] or HELD_OUT,
        "evaluated": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "machine": machine(),
        "context_tokens": options.context_tokens,
    }
    began = time.monotonic()
    with _EvaluationProgress() as progress:
        found = evaluate_run(trained, data, options, about, progress.show)
    console = Console(highlight=False, soft_wrap=True)
    console.print(report_tables(found.report))
    for path in found.files:
        console.print(f"written: {path}")
    threads = torch.get_num_threads()
    Console(stderr=True, highlight=False).print(f"evaluated in {time.monotonic() - began:.0f} s on {threads} threads")
    return found


class _EvaluationProgress(Progress):
    """A bar for each stage, on stderr, where that is a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f} tokens"))
        super().__init__(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._stages: dict[str, TaskID] = {}

    def show(self, stage: str, done: int, total: int) -> None:
        """Move the bar of a stage, which begins when the first of it is done."""
        if stage not in self._stages:
            self._stages[stage] = self.add_task(stage)
        self.update(self._stages[stage], completed=done, total=total)


COMMAND = Command(
    "Measure bits per byte over whole documents and against context, next to gzip and xz.", add_arguments, run
)
