"""Training: a loop that any task and model can use, and the run folders it leaves behind."""

from longreach.training.divergence import DivergenceError
from longreach.training.experiment import Experiment, read_experiment, read_model
from longreach.training.options import TrainingOptions
from longreach.training.run_folder import RunFolder
from longreach.training.trained_run import LoadedRun, load_run
from longreach.training.whole_run import TrainingResult, train

__all__ = [
    "DivergenceError",
    "Experiment",
    "LoadedRun",
    "RunFolder",
    "TrainingOptions",
    "TrainingResult",
    "load_run",
    "read_experiment",
    "read_model",
    "train",
]
