"""`longreach evaluate`: how good a trained model is.

Of a language model: bits per byte over whole documents, and against how much context it gets.  Of any other: what its
task measures, on the validation and on the test data.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from longreach.cli.command import Command
from longreach.cli.options import add_options, build_options
from longreach.errors import InputError
from longreach.inference.evaluate_run import HELD_OUT, RunEvaluation, evaluate_run
from longreach.inference.evaluation import EvaluationOptions
from longreach.inference.judge_run import judge_run
from longreach.inference.report import report_tables
from longreach.inference.trained import TrainedModel, is_language_model, load_trained
from longreach.training import LoadedRun, RunFolder, load_run
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
    loaded = load_run(parsed.run, parsed.checkpoint)
    if not is_language_model(loaded):
        _judge(loaded, parsed)
        return 0
    trained = load_trained(parsed.run, parsed.checkpoint)
    evaluate_and_show(trained, parsed.data, options, checkpoint=parsed.checkpoint)
    return 0


def evaluate_and_show(
    trained: TrainedModel, data: Sequence[Path], options: EvaluationOptions, *, checkpoint: str
) -> RunEvaluation:
    """Evaluate with a progress bar on stderr; tables on stdout, and where they were written."""
    about = {
        **_about(trained.folder, checkpoint),
        "data": [str(path) for path in data] or HELD_OUT,
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


def _judge(loaded: LoadedRun, parsed: Namespace) -> None:
    """Let the task judge the model, and show what it says."""
    task = type(loaded.experiment.task).__name__
    if parsed.data:
        raise InputError(f"{parsed.run} learned {task}, which has data of its own; name no other data to evaluate on")
    found = judge_run(loaded, _about(loaded.folder, parsed.checkpoint))
    console = Console(highlight=False, soft_wrap=True)
    table = Table("metric", f"{parsed.checkpoint} checkpoint", title=f"{parsed.run}: {task}", title_justify="left")
    for name, value in found.metrics.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    console.print(table)
    console.print(f"written: {found.file}")


def _about(folder: RunFolder, checkpoint: str) -> dict[str, object]:
    """What was evaluated, when and where."""
    evaluated = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return {"run": str(folder.path), "checkpoint": checkpoint, "evaluated": evaluated, "machine": machine()}


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
    "Measure how good a trained model is: bits per byte of text next to gzip and xz, or what its task measures.",
    add_arguments,
    run,
)
