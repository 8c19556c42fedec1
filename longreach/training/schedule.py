"""How long a run is and how its learning rate changes.

    factor(t) = (t + 1) / warmup                                   t < warmup
                r + (1 - r) (1 + cos(pi p)) / 2                    afterwards, p from 0 to 1

Linear warm-up and half a cosine (Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983), r = min_lr_ratio.
"""

import math
import statistics
from collections.abc import Sequence

from longreach.training.options import TrainingOptions

EVALUATIONS = 10
"""How often a run is evaluated where the options do not say."""
UNSETTLED_STEPS = 2
"""The first steps of a process also plan transforms and allocate memory; their times are left out."""


def lr_factor(step: int, steps: int | None, options: TrainingOptions) -> float:
    """The multiplier of every learning rate at `step` (from 0) of `steps`, which may be unknown during the warm-up."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    if steps is None:
        raise ValueError(f"the schedule at step {step} needs the number of steps")
    progress = (step - options.warmup_steps) / max(1, steps - options.warmup_steps)
    return options.min_lr_ratio + (1 - options.min_lr_ratio) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def evaluation_interval(steps: int, options: TrainingOptions) -> int:
    """Steps from one evaluation to the next."""
    return options.evaluate_every or math.ceil(steps / EVALUATIONS)


def steps_within(
    seconds: float, step_seconds: Sequence[float], evaluation_seconds: float, options: TrainingOptions
) -> int:
    """How many steps, with their evaluations, fill `seconds`, judged by the first steps and one evaluation."""
    per_step = statistics.median(step_seconds[UNSETTLED_STEPS:] or step_seconds)
    if options.evaluate_every is None:
        seconds -= EVALUATIONS * evaluation_seconds
    else:
        seconds -= evaluation_seconds
        per_step += evaluation_seconds / options.evaluate_every
    return max(0, int(seconds / per_step))
