"""Weights of an earlier run to begin with: fine-tuning, or a curriculum of several runs."""

from pathlib import Path

from torch import nn

from longreach.errors import InputError
from longreach.tasks.base import Task
from longreach.training import checkpoint
from longreach.training.run_folder import RunFolder


class StartingPoint:
    """The best checkpoint of a run.  Raises InputError if there is none."""

    def __init__(self, run: Path) -> None:
        self._run = RunFolder(run)
        self._run.require_run()
        self._checkpoint = self._run.checkpoint("best")

    def give_to(self, model: nn.Module, task: Task) -> None:
        """Copy its weights into a new model; raises InputError unless model and tokens are those of the run."""
        tokens = self._run.read_record().get("data", {}).get("tokenizer")
        if task.record().get("tokenizer", tokens) != tokens:
            raise InputError(
                f"the tokens of this task are not those that {self._run.path} was trained on; "
                f"read the data with its tokenizer: --task.tokenizer {self._run.path / 'tokenizer.json'}"
            )
        checkpoint.load_model(model, self._checkpoint)
