"""`longreach train`: train a model on a task as a configuration says, or continue a run."""

import re
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from longreach.cli.command import Command
from longreach.cli.show_trained import show_trained
from longreach.errors import InputError
from longreach.training import Experiment, RunFolder, TrainingResult, read_experiment, train
from longreach.training.experiment import add_experiment_arguments, build_experiment
from longreach.training.run_folder import default_folder

STOPPED = 130


def add_arguments(parser: ArgumentParser) -> None:
    """The experiment, and which folder it goes to."""
    add_experiment_arguments(parser)
    parser.add_argument(
        "--run",
        "--folder",  # torchrun takes --run for an abbreviation of an option of its own
        type=Path | None,
        help="Folder of the run, by default runs/<name of the configuration>-<date>-<time>; "
        "under torchrun write --folder.",
    )
    parser.add_argument(
        "--resume", type=Path | None, help="Continue the run in this folder as its config.yaml says; no other option."
    )


def run(parsed: Namespace) -> int:
    """Train; tell the result and where everything is."""
    experiment, folder = _choose(parsed)
    result = train(
        experiment.task,
        experiment.model,
        experiment.training,
        folder,
        resume=parsed.resume is not None,
        config=experiment.config,
    )
    if result.leads:
        _report(result)
        if result.finished:
            show_trained(result.run)
    return 0 if result.finished else STOPPED


def _choose(parsed: Namespace) -> tuple[Experiment, Path]:
    """The experiment to run and the folder it goes to."""
    if parsed.resume is not None:
        if _begins_another(parsed):
            raise InputError(
                f"--resume continues {parsed.resume} as it was begun and takes no other options; "
                f"for others begin a new run: longreach train --config {parsed.resume}/config.yaml ..."
            )
        folder = RunFolder(parsed.resume)
        folder.require_run()
        return read_experiment(folder.config), folder.path
    return build_experiment(parsed), parsed.run or default_folder(_name(parsed))


def _begins_another(parsed: Namespace) -> bool:
    """Whether there are options that `--resume` does not take."""
    parser = ArgumentParser()
    add_arguments(parser)
    return any(parsed[name] != default for name, default in parser.get_defaults().items() if name != "resume")


def _name(parsed: Namespace) -> str:
    """What the configuration is called; a repeated run is called as the first."""
    if not parsed.config:
        return "run"
    path = Path(parsed.config[-1])
    name = path.stem if path.stem != "config" else path.absolute().parent.name
    return re.sub(r"-\d{8}-\d{6}$", "", name)


def _report(result: TrainingResult) -> None:
    """The metrics of the best checkpoint, and where to find what was made."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if result.best:
        table = Table("metric", "best checkpoint", title=str(result.run), title_justify="left")
        for name, value in result.best.metrics.items():
            table.add_row(name.replace("_", " "), f"{value:.4f}")
        console.print(table)
    for plot in result.plots:
        console.print(f"plot: {plot}")
    if not result.finished:
        console.print(f"stopped; continue with: longreach train --resume {result.run}")


COMMAND = Command("Train a model, or continue a run.", add_arguments, run)
