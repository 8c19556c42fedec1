"""Every system by the name that commands call it, and the configuration of each on every task.

`published` is what papers say of a system on a task, or where nobody says anything a neighbour's.  `small` is the same
at a size and on a budget that make sense on two cores: all systems get the same depth, width and minutes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import yaml

from longreach.bench.lra.convolutions import CONVOLUTIONS
from longreach.bench.lra.gated import GATED
from longreach.bench.lra.recipes import Recipe, Size
from longreach.bench.lra.state_spaces import STATE_SPACES
from longreach.bench.lra.tasks import Config, task_config, task_of
from longreach.bench.lra.transformers import TRANSFORMERS
from longreach.errors import InputError
from longreach.training import TrainingOptions

Budget = Literal["small", "published"]


class System(Protocol):
    """What has hyperparameters for every task."""

    def recipe(self, task: str, size: Size | None = None) -> Recipe:
        """Those for a task, or the same for a model of another size."""
        ...


SYSTEMS: Mapping[str, System] = {**STATE_SPACES, **CONVOLUTIONS, **GATED, **TRANSFORMERS}


class Small(NamedTuple):
    """The small budget of a task."""

    size: Size
    batch: int
    evaluated: int
    """Examples of the validation part while training."""


SMALL = {"packages": Small(Size(2, 64), 8, 100)}
SMALL_OTHER = Small(Size(4, 128), 32, 1000)
LONG_WARMUP, SHORT_WARMUP, SHORT_MINUTES = 300, 20, 20
"""Steps of warm-up on a small budget, and below which number of minutes they are the fewer."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a system is trained on a task.

    Attributes:
        budget: `small` gives all systems the same size and minutes, for two cores; `published` is what papers did.
        minutes: Wall-clock budget instead of the steps; 60 with the small budget.
        steps: Optimiser steps instead.
        data: The task's files, where it is not made here.
        seed: Of weights and of the order of examples.
        precision: `float32` or `bfloat16`; the latter with the small budget.
        threads: Threads on the CPU; by default what torch chooses.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.
    """

    budget: Budget = "small"
    minutes: float | None = None
    steps: int | None = None
    data: Path | None = None
    seed: int = 0
    precision: Literal["float32", "bfloat16"] | None = None
    threads: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


def recipe_of(task: str, system: str, budget: Budget = "published") -> Recipe:
    """The hyperparameters of a system; raises InputError if there is no such system or task."""
    task_of(task)
    if system not in SYSTEMS:
        raise InputError(f"there is no system {system!r}; choose from {', '.join(SYSTEMS)}")
    if budget == "published":
        return SYSTEMS[system].recipe(task)
    small = SMALL.get(task, SMALL_OTHER)
    recipe = SYSTEMS[system].recipe(task, small.size)
    changed = {"grad_clip": 1.0, "steps": None, "minutes": 60.0, "precision": "bfloat16"}
    return replace(recipe, batch_size=small.batch, training={**recipe.training, **changed})


def configure(task: str, system: str, options: RunOptions) -> Config:
    """The configuration of a run."""
    recipe = recipe_of(task, system, options.budget)
    loading: Config = {"batch_size": recipe.batch_size, "seed": options.seed}
    if options.budget == "small":
        loading["evaluation_examples"] = SMALL.get(task, SMALL_OTHER).evaluated
    if task_of(task).lengths_differ and _has_batch_norm(recipe.model):
        loading["pool"] = 1  # running statistics of similar lengths would be those of the last few lengths
    training = {**recipe.training, "seed": options.seed, "threads": options.threads, "device": options.device}
    if options.minutes is not None or options.steps is not None:
        training |= {"minutes": options.minutes, "steps": options.steps}
    if options.precision is not None:
        training["precision"] = options.precision
    if options.budget == "small":
        short = (training["minutes"] or SHORT_MINUTES) < SHORT_MINUTES or training["steps"] is not None
        training["warmup_steps"] = SHORT_WARMUP if short else LONG_WARMUP
    TrainingOptions(**{**training, "betas": tuple(training["betas"])})  # refuses what makes no sense
    return {
        "task": task_config(task, recipe.pipeline, loading, options.data),
        "model": recipe.model,
        "training": training,
    }


def _has_batch_norm(model: Config) -> bool:
    return model["init_args"]["backbone"].get("init_args", {}).get("norm") == "batch"


def config_text(task: str, system: str, options: RunOptions) -> str:
    """The same as YAML, with where its numbers are from in front."""
    recipe = recipe_of(task, system, options.budget)
    title = task_of(task).title
    lines = [f"{system} on {title}. Hyperparameters: {recipe.source}."]
    if recipe.said_of != task:
        lines.append(f"Nothing is published for {title}; taken from {task_of(recipe.said_of).title}.")
    if options.budget == "small":
        lines.append("Size, batch and length of training are ours: what makes sense on two cores.")
    lines += [f"Not as published: {difference}." for difference in recipe.differences]
    config: Any = configure(task, system, options)
    text = yaml.safe_dump(config, sort_keys=False, default_flow_style=False)
    return "".join(f"# {line}\n" for line in lines) + text
