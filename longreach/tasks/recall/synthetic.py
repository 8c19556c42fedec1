"""What the synthetic tasks have in common: examples made on the fly, and a held-out set that is always the same.

The examples of a step are a pure function of the task's arguments, its seed and the number of the step, the same in
every process, in every version of numpy and on every machine; no example is seen twice.  The held-out examples come
from a stream of random numbers of their own.
"""

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy import ndarray
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.tasks.base import Batch, Evaluation, ModelFactory, Task
from longreach.tasks.recall.draws import Draws

IGNORED = -100
"""The target where nothing is asked."""


class SyntheticTask(Task):
    """A task whose examples are computed.

    Args:
        length: How long an example is, in a unit that the task names.
        batch_size: Examples per step, over all processes.
        seed: Another seed, other examples.
        n_held_out: Examples that models are judged by.
    """

    def __init__(self, *, length: int, batch_size: int, seed: int, n_held_out: int) -> None:
        for name, value in (("length", length), ("batch_size", batch_size), ("n_held_out", n_held_out)):
            if value < 1:
                raise InputError(f"{name} = {value} must be at least 1")
        self.length, self.batch_size, self.seed, self.n_held_out = length, batch_size, seed, n_held_out

    @property
    @abstractmethod
    def n_positions(self) -> int:
        """Positions that a model reads of an example."""

    @abstractmethod
    def make(self, draws: Draws, rows: int) -> Batch:
        """So many examples, with all that can be learnt from them as targets."""

    def prepare(self) -> None:
        """Nothing is read."""

    def batch(self, step: int, part: int, parts: int) -> Batch:
        """New examples."""
        if self.batch_size % parts:
            raise InputError(
                f"batch_size = {self.batch_size} cannot be divided equally into {parts} parts, one for each process; "
                f"use a multiple of {parts}"
            )
        share = self.batch_size // parts
        mine = slice(part * share, (part + 1) * share)
        whole = self.make(Draws(type(self).__name__, self.seed, "step", step), self.batch_size)
        return Batch(whole.inputs[mine], whole.targets[mine])

    def held_out(self) -> Iterator[Batch]:
        """The held-out examples, as many at once as in a step."""
        for number, first in enumerate(range(0, self.n_held_out, self.batch_size)):
            rows = min(self.batch_size, self.n_held_out - first)
            yield self.make(Draws(type(self).__name__, self.seed, "held out", number), rows)

    def require(self, model: nn.Module) -> None:
        """Raise InputError unless a model can be asked at every position of an example."""
        name = type(model).__name__
        if not (hasattr(model, "token_losses") and hasattr(model, "hidden")):
            raise InputError(f"recall is for language models; {name} has no token_losses: wrap it in a LanguageModel")
        if not getattr(model, "causal", True):
            raise InputError(f"{name} is not causal: it would read the answers; use causal mixers")
        limit = getattr(model, "max_length", None)
        if limit is not None and limit < self.n_positions:
            raise InputError(
                f"an example with length = {self.length} has {self.n_positions} positions, more than max_length = "
                f"{limit} of {name}; lower task.length or raise the model's max_length"
            )

    def record(self) -> dict[str, object]:
        """The arguments that say which examples there are."""
        return {"length": self.length, "batch_size": self.batch_size, "seed": self.seed, "held_out": self.n_held_out}


class TokenTask(SyntheticTask):
    """A synthetic task of tokens: questions at some positions, each with one right answer.

    A model is judged by its accuracy on the questions of the held-out examples, to be compared with
    `chance`, the rate of one who guesses among the possible answers, and with `majority`, that of one who always gives
    the most frequent answer.
    """

    objective = "accuracy"
    maximise = True

    vocab_size: int
    """Number of tokens, special ones included."""
    n_answers: int
    """Number of tokens that can be an answer."""

    @abstractmethod
    def solve(self, inputs: Int64[ndarray, "b l"]) -> Int64[ndarray, "b l"]:
        """The right answers, found by reading the inputs, and IGNORED where nothing is asked."""

    def build(self, model: ModelFactory) -> nn.Module:
        """The model for this vocabulary; raises InputError unless it predicts tokens over all positions."""
        built = model(self.vocab_size)
        self.require(built)
        return built

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the targets' losses in nats."""
        return model.token_losses(batch.inputs, batch.targets).float().sum()  # type: ignore[operator]

    def describe_loss(self, loss: float) -> dict[str, float]:
        """Nats are what people read here."""
        return {}

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Accuracy and loss on the questions of the held-out examples, with the rates that need no memory."""
        right, loss, counts = 0, 0.0, torch.zeros(self.vocab_size, dtype=torch.long)
        device = next(model.parameters()).device
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for batch in self.held_out():
                inputs = batch.inputs
                answers = torch.from_numpy(self.solve(inputs.numpy()))
                asked = answers != IGNORED
                wanted = answers[asked]
                logits = _logits(model, inputs.to(device), asked.to(device)).float().cpu()
                right += int((logits.argmax(-1) == wanted).sum())
                loss += float(F.cross_entropy(logits, wanted, reduction="sum"))
                counts += torch.bincount(wanted, minlength=self.vocab_size)
        model.train(was_training)
        n_asked = int(counts.sum())
        rates = {"chance": 1 / self.n_answers, "majority": int(counts.max()) / n_asked}
        return Evaluation({"accuracy": right / n_asked, "loss": loss / n_asked, **rates}, {})

    def record(self) -> dict[str, object]:
        """The arguments that say which examples there are."""
        return {**super().record(), "vocab_size": self.vocab_size}


def _logits(model: nn.Module, inputs: Tensor, asked: Tensor) -> Tensor:
    """Those of the positions that are asked, the only ones that are needed."""
    return model.logits(model.hidden(inputs)[asked])  # type: ignore[operator]


def next_tokens(tokens: Int64[ndarray, "b l"], n_hidden: int = 0) -> Batch:
    """Every token as the target of the position before it, but for the first `n_hidden` targets."""
    targets = tokens[:, 1:].copy()
    targets[:, :n_hidden] = IGNORED
    return Batch(torch.from_numpy(tokens[:, :-1].copy()), torch.from_numpy(targets))


def answers_at(
    inputs: Int64[ndarray, "b l"], asked: Bool[ndarray, "b l"] | slice, answers: Int64[ndarray, "..."]
) -> Int64[ndarray, "b l"]:
    """Answers at the positions where they are asked for, IGNORED elsewhere."""
    found = np.full_like(inputs, IGNORED)
    if isinstance(asked, slice):
        found[:, asked] = answers
    else:
        found[asked] = answers
    return found
