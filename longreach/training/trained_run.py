"""A trained model, from the folder of its run."""

from pathlib import Path
from typing import NamedTuple

from torch import nn

from longreach.errors import InputError
from longreach.training import checkpoint as checkpoints
from longreach.training.experiment import Experiment, read_experiment
from longreach.training.run_folder import CheckpointName, RunFolder


class LoadedRun(NamedTuple):
    """A model with what it was trained by."""

    model: nn.Module
    """In eval mode, on the CPU."""
    experiment: Experiment
    """Its task has not been prepared, so nothing of the data has been read."""
    folder: RunFolder


def load_run(run: Path, checkpoint: CheckpointName = "best") -> LoadedRun:
    """Build the model of a run from its config.yaml and load its weights; the data is not needed.

    Raises InputError if `run` is not the folder of a run, or its files are damaged or do not fit each other.
    """
    folder = RunFolder(run)
    folder.require_run()
    experiment = read_experiment(folder.config)
    size = folder.read_record().get("model", {}).get("input_size")
    if size is None:
        raise InputError(f"{folder.record} does not tell the size of the model's input; restore it or train again")
    model = experiment.model(size)
    checkpoints.load_model(model, folder.checkpoint(checkpoint))
    return LoadedRun(model.eval(), experiment, folder)
