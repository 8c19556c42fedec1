"""A model with its optimiser, in all processes of a run: one step, one evaluation, one checkpoint.

One step takes batch `step` of the task, cut into one part per process and accumulation.  Its gradient is that of

    loss = sum over all parts of (sum of the losses of their targets) / (number of targets in all parts)

so that neither the number of processes nor that of parts changes the result, except for rounding.  What is random in
a part is seeded from the run's seed, the step and the part.  A step is therefore a pure function of the weights, the
optimiser's statistics and its own number: a run that resumes from a checkpoint repeats lost steps bit for bit (on a
GPU as far as its kernels are deterministic).
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.base import State
from longreach.tasks.base import Batch, Evaluation, Task
from longreach.training import checkpoint
from longreach.training.divergence import DivergenceError, first_fault
from longreach.training.optimiser import make_optimiser, set_lr_factor
from longreach.training.options import TrainingOptions
from longreach.training.processes import Processes, distribute, exchange_gradients, full_tensor, reshard


class StepResult(NamedTuple):
    """What one step found."""

    loss: float
    """Mean over all targets of the step, in nats, before the update."""
    grad_norm: float
    """Norm of the whole gradient before clipping."""
    targets: int
    """Targets in the step."""
    tokens: int
    """Positions that were read for them."""


class Learner:
    """Made in every process of the run, in the same way; every method is called by all of them together."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        options: TrainingOptions,
        processes: Processes,
        *,
        resume_from: Path | None = None,
    ) -> None:
        self.task, self.model, self.options, self.processes = task, model.to(processes.device), options, processes
        if resume_from:
            checkpoint.load_model(model, resume_from)
        self._applied = distribute(model, processes, options.parallel)
        self._optimiser = make_optimiser(model, options)
        if resume_from:
            checkpoint.load_optimiser(self._optimiser, model, resume_from)

    def step(self, step: int, factor: float) -> StepResult:
        """Learn from batch `step` with all learning rates times `factor`.

        Raises DivergenceError, with the weights as they were, if the loss or the gradient is not finite.
        """
        self.model.train()
        parts = self._parts(step)
        targets = round(self.processes.sum(sum(batch.weight for batch in parts.values())))
        if targets == 0:
            raise InputError(f"step {step} has no targets to learn from; check the task's data")
        loss = self.processes.sum(self._backward(step, parts, targets))
        grad_norm = float(
            full_tensor(nn.utils.clip_grad_norm_(self.model.parameters(), self.options.grad_clip or torch.inf))
        )
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise self._divergence(step, parts, targets, loss, grad_norm)
        set_lr_factor(self._optimiser, factor)
        self._optimiser.step()
        self._optimiser.zero_grad()
        tokens = round(self.processes.sum(sum(batch.positions for batch in parts.values())))
        return StepResult(loss, grad_norm, targets, tokens)

    def evaluate(self) -> Evaluation:
        """The task's judgement of the model as it is."""
        self.model.eval()
        with torch.no_grad(), self._autocast():
            evaluation = self._applied(self.task.evaluate)
        reshard(self._applied)
        return evaluation

    def test(self, model: nn.Module) -> dict[str, float]:
        """The task's last judgement of a whole model, by this process alone."""
        with torch.no_grad(), self._autocast():
            return self.task.test(model.to(self.processes.device).eval())

    def save(self, folder: Path, state: Mapping[str, Any], *, to_resume: bool) -> None:
        """Write a checkpoint, with what `resume_from` needs or with the weights only."""
        files = {checkpoint.MODEL: checkpoint.model_tensors(self.model)}
        if to_resume:
            files[checkpoint.OPTIMISER] = checkpoint.optimiser_tensors(self.model, self._optimiser)
        checkpoint.save(folder, files, state, write=self.processes.leads)

    def _parts(self, step: int) -> dict[int, Batch]:
        """This process's parts of a step, by number."""
        mine, all_parts = self.options.accumulate, self.options.accumulate * self.processes.count
        numbers = range(mine * self.processes.rank, mine * (self.processes.rank + 1))
        return {part: self.task.batch(step, part, all_parts) for part in numbers}

    def _backward(self, step: int, parts: Mapping[int, Batch], targets: int) -> float:
        """Leave the gradient in the parameters; returns this process's share of the loss."""
        share = 0.0
        for part, batch in parts.items():
            torch.manual_seed(_seed(self.options.seed, step, part))
            state, pieces = None, self.task.pieces(batch)
            for number, piece in enumerate(pieces, start=1):
                exchange_gradients(self._applied, part == max(parts) and number == len(pieces))
                with self._autocast():
                    loss, state = self._applied(self._loss, piece, state)
                    loss = loss / targets
                # averaging over the processes divides by their number
                (loss * self.processes.count).backward()
                share += loss.item()
        return share

    def _loss(self, model: nn.Module, batch: Batch, state: State | None) -> tuple[Tensor, State | None]:
        return self.task.loss_after(model, batch.to(self.processes.device), state)

    def _autocast(self) -> torch.autocast:
        enabled = self.options.precision == "bfloat16"
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=enabled)

    def _divergence(
        self, step: int, parts: Mapping[int, Batch], targets: int, loss: float, grad_norm: float
    ) -> DivergenceError:
        self._optimiser.zero_grad()
        found = first_fault(self.model, lambda: self._backward(step, parts, targets))
        self._optimiser.zero_grad()
        faults = [fault for fault in self.processes.collect(found) if fault]
        where = min(faults).place if faults else "nothing when repeated, so a result is not deterministic"
        return DivergenceError(
            f"step {step + 1}: the loss is {loss} and the norm of the gradient is {grad_norm}; the first that is not "
            f"finite is {where}.  The last checkpoint is good; try a lower training.lr, a longer training.warmup_steps "
            "or a smaller training.grad_clip"
        )


def _seed(seed: int, step: int, part: int) -> int:
    """A seed that differs for every part of every step of every run."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {part}".encode()).digest()[:7])
