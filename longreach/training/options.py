"""What a run may choose about its training.  The field comments are the help text of the command line."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longreach.errors import InputError

MEASURED_STEPS = 10
"""With a budget in minutes, this many steps are timed before the number of steps is fixed."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How a model is trained; give `steps` or `minutes`, everything else has a default."""

    steps: int | None = None
    """Optimiser steps to train for."""
    minutes: float | None = None
    """Wall-clock budget instead of `steps`, for training and evaluation; the first steps are timed, then the number
    of steps is fixed and recorded, so that the run can be resumed and repeated."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.1
    """Decoupled weight decay; biases, norms, embeddings and what a mixer exempts have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's running averages."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises linearly from zero."""
    min_lr_ratio: float = 0.0
    """The learning rate at the end, as a fraction of the peak; between them it follows half a cosine."""
    grad_clip: float | None = 1.0
    """Largest norm of the gradient; a longer one is scaled down to it."""
    accumulate: int = 1
    """Parts into which every process cuts its share of a step, to need less memory for the same result."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` runs dense products under autocast; weights, optimiser and spectra stay in float32."""
    evaluate_every: int | None = None
    """Steps between evaluations; by default ten evaluations in the run.  The last step is always evaluated."""
    stop_at: float | None = None
    """End the run at the first evaluation whose objective is as good as this."""
    save_every: int | None = None
    """Steps between checkpoints; by default at every evaluation.  The last step is always saved."""
    log_every: int = 1
    """Steps between lines of metrics.jsonl, which hold means over those steps."""
    start_from: Path | None = None
    """Folder of a trained run of the same model: begin with the weights of its best checkpoint instead of random ones,
    to go on with other data, longer sequences or another schedule."""
    seed: int = 0
    """Seed of the initial weights and of dropout; the task has its own for the data."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes a GPU if there is one."""
    threads: int | None = None
    """Threads of every process on the CPU; by default what torch chooses."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How the processes of torchrun share the work: with whole copies of the model, or with its parameters,
    gradients and optimiser state cut into shards (FSDP2)."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise InputError(
                f"training.steps is {self.steps} and training.minutes is {self.minutes}; give exactly one of the two, "
                "and set the other to null where a file gives it"
            )
        for name in ("steps", "minutes", "lr", "grad_clip", "accumulate", "evaluate_every", "save_every", "log_every"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"training.{name} is {value}; it must be a finite number greater than 0")
        for name in ("weight_decay", "warmup_steps", "min_lr_ratio"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InputError(f"training.{name} is {value}; it must be a finite number, 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"training.betas is {self.betas}; both must be from 0 to less than 1")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"training.threads is {self.threads}; it must be 1 or more")
        if self.minutes is not None and self.warmup_steps < MEASURED_STEPS:
            raise InputError(
                f"training.warmup_steps is {self.warmup_steps}; with a budget in minutes it must be at least "
                f"{MEASURED_STEPS}, because the schedule after the warm-up depends on how long those steps take"
            )
