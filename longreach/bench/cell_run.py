"""A cell of a table as a run: trained once, in a folder of its own, from a configuration that repeats it.

`longreach train --config CELL/config.yaml` trains the same again.  A cell whose run was stopped is continued as it was
begun, whatever is asked for now; one that is finished has a result and is only read.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from longreach.disk import replace_text
from longreach.errors import InputError
from longreach.training import DivergenceError, Experiment, RunFolder, read_experiment, train

RESULT = "result.json"
R = TypeVar("R")


class TrainedCell(NamedTuple):
    """A run that has come to its end."""

    folder: RunFolder
    experiment: Experiment
    note: str
    """Why training diverged; empty if it did not."""


def train_cell(path: Path, configure: Callable[[], str]) -> TrainedCell | None:
    """Train a cell, or go on with it; None if it was stopped by a signal.  `configure` is asked for its text once."""
    folder = RunFolder(path)
    if not folder.config.exists():
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
