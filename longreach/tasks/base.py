"""What is trained: where the batches come from, what the loss is, and how a model is judged.

A task knows nothing of optimisers, devices or processes; the loop in `longreach.training` knows nothing of data.
A batch is a pure function of the step, so the position in the data needs no state: a run that resumes at step n asks
for batch n.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longreach.mixers.base import State

ModelFactory = Callable[[int], nn.Module]
"""Builds the model for a vocabulary (or number of input features) of the given size."""


class Batch(NamedTuple):
    """A part of one step's examples."""

    inputs: Tensor
    """Tokens `(batch, length)` int64, or features `(batch, length, dim)`."""
    targets: Tensor
    """What is to be predicted; -100 where nothing is."""
    mask: Tensor | None = None
    """True where there is data and False where there is padding; None if there is no padding."""

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        mask = None if self.mask is None else self.mask.to(device)
        return Batch(self.inputs.to(device), self.targets.to(device), mask)

    @property
    def positions(self) -> int:
        """The number of positions that are read, padding not counted."""
        if self.mask is not None:
            return int(self.mask.sum())
        return self.inputs.numel() // (self.inputs.shape[-1] if self.inputs.is_floating_point() else 1)

    @property
    def weight(self) -> int:
        """The number of targets that count."""
        return int((self.targets != -100).sum())


class Curve(NamedTuple):
    """A line of a plot."""

    x_label: str
    y_label: str
    x: list[float]
    y: list[float]


class Evaluation(NamedTuple):
    """How well a model does."""

    metrics: dict[str, float]
    curves: dict[str, Curve]


class Task(ABC):
    """A source of batches with a loss and a measure of success."""

    objective: str
    """The metric of `evaluate` that decides which checkpoint is the best; smaller is better unless `maximise`."""
    maximise: bool = False
    has_test: bool = False
    """Whether `test` says anything."""

    @abstractmethod
    def prepare(self) -> None:
        """Read and cache the data.  Called first, in every process; safe when several do it at once."""

    @abstractmethod
    def build(self, model: ModelFactory) -> nn.Module:
        """The model for this task, after `prepare`; raises InputError if the two do not fit each other."""

    @abstractmethod
    def batch(self, step: int, part: int, parts: int) -> Batch:
        """The `part`-th (from 0) of the `parts` equal parts of the examples of `step`; the same on every machine."""

    def work(self, first_step: int, stop_step: int) -> int:
        """How much there is to do from one step up to another, in any unit: by it the time left is estimated."""
        return stop_step - first_step

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum, not the mean, of the losses of all targets that count, in nats: a float32 scalar."""

    def pieces(self, batch: Batch) -> list[Batch]:
        """Consecutive pieces of a batch, through each of which gradients flow by themselves; usually one."""
        return [batch]

    def loss_after(self, model: nn.Module, piece: Batch, state: State | None) -> tuple[Tensor, State | None]:
        """The loss of a piece and the state after it, given that after the piece before (None: this is the first)."""
        return self.loss(model, piece), state

    @abstractmethod
    def evaluate(self, model: nn.Module) -> Evaluation:
        """Judge the model on held-out data, in eval mode and without gradients."""

    def test(self, model: nn.Module) -> dict[str, float]:
        """Metrics of the finished run's best model, in eval mode, on data that decided on nothing; none by default."""
        return {}

    @abstractmethod
    def describe_loss(self, loss: float) -> dict[str, float]:
        """A mean training loss in nats per target, in the units that people read (for example bits per byte)."""

    @abstractmethod
    def record(self) -> dict[str, object]:
        """What was read, for the run's record: counts, bytes, digests; plain JSON values."""

    def save(self, folder: Path) -> None:  # noqa: B027 (optional)
        """Write what a trained model needs beside its weights, such as a tokenizer, into the run's folder."""
