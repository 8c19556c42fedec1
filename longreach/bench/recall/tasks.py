"""Which tasks there are a table of, and what its two axes are."""

from collections.abc import Callable
from typing import NamedTuple

from longreach import tasks
from longreach.errors import InputError
from longreach.tasks.recall import SyntheticTask


class RecallKind(NamedTuple):
    """A task as the rows of a table."""

    build: Callable[..., SyntheticTask]
    size: str | None
    """The argument that `--vocabulary` sets; None where the vocabulary is given by the task."""
    unit: str
    """What `--lengths` counts."""
    default_size: int | None
    score: str = "percent right"
    """What a cell tells."""

    @property
    def class_name(self) -> str:
        """The name of the task in a configuration."""
        return self.build.__name__


TASKS: dict[str, RecallKind] = {
    "associative": RecallKind(tasks.AssociativeRecall, "vocabulary", "tokens of pairs", 20),
    "multi-query": RecallKind(tasks.MultiQueryRecall, "vocabulary", "tokens", 256),
    "induction": RecallKind(tasks.InductionHead, "vocabulary", "tokens before the prompt", 20),
    "majority": RecallKind(tasks.Majority, "vocabulary", "tokens before the prompt", 10),
    "counting": RecallKind(tasks.Counting, "vocabulary", "tokens before the prompt", 10),
    "functions": RecallKind(
        tasks.LinearFunctions, "dimension", "points and values", 5, "percent of the variance explained"
    ),
    "addition": RecallKind(tasks.Addition, None, "digits of a number", None),
}


def kind_of(task: str) -> RecallKind:
    """The task of that name; raises InputError if there is none."""
    if task not in TASKS:
        raise InputError(f"there is no task {task!r}; choose from {', '.join(TASKS)}")
    return TASKS[task]


def task_arguments(task: str, length: int, size: int | None) -> dict[str, int]:
    """What the two axes of a table mean for the task's class."""
    name = kind_of(task).size
    return {"length": length} | ({} if name is None or size is None else {name: size})
