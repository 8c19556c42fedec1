"""A cell of a table as a run: trained once, in a folder of its own, from a configuration that repeats it.

`longreach train --config CELL/config.yaml` trains the same again.  A cell whose run was stopped is continued as it was
begun, whatever is asked for now; one that is finished has a result and is only read.  `progress_of` says which it is.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from longreach.disk import replace_text
from longreach.errors import InputError
from longreach.training import DivergenceError, Experiment, RunFolder, checkpoint, read_experiment, train

RESULT = "result.json"
R = TypeVar("R")


class TrainedCell(NamedTuple):
    """A run that has come to its end."""

    folder: RunFolder
    experiment: Experiment
    note: str
    """Why training diverged; empty if it did not."""


def train_cell(path: Path, configure: Callable[[], str]) -> TrainedCell | None:
    """Train a cell, or go on with it; None if it was stopped by a signal.

    `configure` is asked for its text until there is a checkpoint: what failed before, as for want of data, is mended by
    other options.
    """
    folder = RunFolder(path)
    if not _is_begun(folder):
        folder.create()
        replace_text(folder.config, configure())
    experiment = read_experiment(folder.config)
    note = ""
    try:
        run = train(experiment.task, experiment.model, experiment.training, path, resume=True, config=experiment.config)
        if not run.finished:
            return None
    except DivergenceError as error:
        note = str(error)
    return TrainedCell(folder, experiment, note)


def progress_of(path: Path) -> str:
    """What there is of a cell already, for people; empty if nothing is."""
    if (path / RESULT).exists():
        return f" is finished; to train it anew, remove {path}"
    return " goes on as it was begun" if _is_begun(RunFolder(path)) else ""


def _is_begun(folder: RunFolder) -> bool:
    return folder.config.exists() and checkpoint.find(folder.checkpoints / "last") is not None


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Keep what a cell has come to."""
    replace_text(path / RESULT, json.dumps(result, indent=1) + "\n")


def read_result(path: Path, kind: Callable[..., R]) -> R | None:
    """What a cell has come to; None if it is not finished.  Raises InputError if the file is damaged."""
    file = path / RESULT
    if not file.exists():
        return None
    try:
        return kind(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is damaged: {error}; remove its folder, and the cell is trained again") from error
