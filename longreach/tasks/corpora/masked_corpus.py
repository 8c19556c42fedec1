"""Masked language modelling on a corpus: some tokens of a window are hidden, and the model says which they were.

Of the tokens of every window a share is chosen, 15% in BERT (Devlin et al. 2018, https://arxiv.org/abs/1810.04805).  Of
those, 80% become the mask token, 10% a random one and 10% stay; the loss is on all of them and on nothing else.  The
mask token is the one behind the last of the tokenizer, so a model has one token more.  Separators are never chosen.

What is chosen follows from the seed, the step and the example alone, so it is the same in any number of processes.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.tasks.base import Batch, Evaluation, ModelFactory, Task
from longreach.tasks.corpora.corpus import Corpus

IGNORED = -100
"""The target where nothing is to be predicted."""
ROWS = 1024
"""So many logits are made at a time in an evaluation."""


@dataclass(frozen=True)
class Masking:
    """What is hidden.

    Args:
        share: Part of the tokens that are to be predicted.
        masked: Part of those that become the mask token.
        random: Part of those that become some other token; the rest stay as they are.
    """

    share: float = 0.15
    masked: float = 0.8
    random: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"masking: share = {self.share} must be more than 0 and at most 1")
        if min(self.masked, self.random) < 0 or self.masked + self.random > 1:
            raise InputError(
                f"masking: masked = {self.masked} and random = {self.random} must not be negative, nor more than 1 "
                "together"
            )


class _Restorer(Protocol):
    """What the task asks of a model, see `longreach.models.MaskedLanguageModel`."""

    max_length: int | None
    causal: bool
    hidden: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    token_losses: Callable[[Tensor, Tensor], Tensor]


class MaskedCorpus(Task):
    """Restore hidden tokens of text or code.  For models that read in both directions.

    Args:
        corpus: Where the text comes from, and how much of it is seen at once.
        masking: How much is hidden, and behind what.
    """

    objective = "masked_loss"

    def __init__(self, corpus: Corpus, masking: Masking = Masking()) -> None:
        if corpus.truncation is not None:
            raise InputError(
                f"truncation = {corpus.truncation} carries a state forward, but a masked text is read both ways; "
                "set it to null"
            )
        self.corpus = corpus
        self.masking = masking

    def prepare(self) -> None:
        """Read and cache the text."""
        self.corpus.prepare()

    @property
    def mask_token(self) -> int:
        """What stands for a hidden token."""
        return self.corpus.tokenizer.vocab_size

    def build(self, model: ModelFactory) -> nn.Module:
        """The model for this vocabulary and the mask token; raises InputError unless it reads both ways."""
        built = model(self.corpus.tokenizer.vocab_size + 1)
        name = type(built).__name__
        if missing := [part for part in ("token_losses", "hidden", "logits") if not hasattr(built, part)]:
            raise InputError(
                f"a masked corpus needs a MaskedLanguageModel or LanguageModel; {name} has no {missing[0]}"
            )
        if cast(_Restorer, built).causal:
            raise InputError(
                f"{name} is causal: it would not see what follows a hidden token; use mixers with causal=False, or "
                "train it on a Corpus"
            )
        self.corpus.require_context(built)
        return built

    def batch(self, step: int, part: int, parts: int) -> Batch:
        """Windows of the training text with some of their tokens hidden."""
        windows = self.corpus.batch(step, part, parts).inputs
        first = part * len(windows)
        return self.hide(windows, [f"{self.corpus.seed} {step} {first + row}" for row in range(len(windows))])

    def work(self, first_step: int, stop_step: int) -> int:
        """The number of tokens that are read."""
        return self.corpus.work(first_step, stop_step)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the losses of the hidden tokens in nats."""
        return self.corpus.loss(model, batch)

    def describe_loss(self, loss: float) -> dict[str, float]:
        """The loss and the perplexity of hidden tokens."""
        return {"masked_loss": loss, "masked_perplexity": math.exp(min(loss, 700.0))}

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Loss, perplexity and accuracy on hidden tokens of the validation part, the same ones every time."""
        nats, right, count = 0.0, 0, 0
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for number, windows in enumerate(self.corpus.evaluation_batches()):
                    names = [f"{self.corpus.seed} evaluation {number} {row}" for row in range(len(windows.inputs))]
                    batch = self.hide(windows.inputs, names)
                    losses, hits = _judge(model, batch.inputs.to(device), batch.targets.to(device))
                    nats, right, count = nats + losses, right + hits, count + batch.weight
        finally:
            model.train(was_training)
        if count == 0:
            raise InputError("the validation part has no token that could be hidden; use more text")
        return Evaluation({**self.describe_loss(nats / count), "masked_accuracy": right / count}, {})

    def record(self) -> dict[str, object]:
        """What was read and how it was masked."""
        masking = {"share": self.masking.share, "masked": self.masking.masked, "random": self.masking.random}
        return {**self.corpus.record(), "masking": {**masking, "mask_token": self.mask_token}}

    def save(self, folder: Path) -> None:
        """Write tokenizer.json; the mask token is the one after its last."""
        self.corpus.save(folder)

    def hide(self, windows: Int64[Tensor, "b l"], names: list[str]) -> Batch:
        """Hide tokens of every window, as its name alone decides."""
        inputs, targets = windows.clone(), torch.full_like(windows, IGNORED)
        for row, name in enumerate(names):
            tokens = windows[row].numpy()
            draw = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]))
            candidates = np.flatnonzero(tokens != self.corpus.tokenizer.separator)
            if not len(candidates):
                continue
            chosen = draw.permutation(candidates)[: max(1, round(self.masking.share * len(tokens)))]
            fate = draw.random(len(chosen))
            others = draw.integers(self.corpus.tokenizer.vocab_size, size=len(chosen))
            masked, changed = self.masking.masked, self.masking.masked + self.masking.random
            shown = np.where(fate < masked, self.mask_token, np.where(fate < changed, others, tokens[chosen]))
            targets[row, chosen] = windows[row, chosen]
            inputs[row, chosen] = torch.from_numpy(shown)
        return Batch(inputs, targets)


def _judge(model: nn.Module, inputs: Int64[Tensor, "b l"], targets: Int64[Tensor, "b l"]) -> tuple[float, int]:
    """The sum of the losses of all targets, and how many were right."""
    asked, restorer = targets != IGNORED, cast(_Restorer, model)
    hidden = restorer.hidden(inputs)[asked]  # (n, d)
    wanted, nats, right = targets[asked], 0.0, 0
    for features, target in zip(hidden.split(ROWS), wanted.split(ROWS), strict=True):
        logits = restorer.logits(features).float()
        nats += float(F.cross_entropy(logits, target, reduction="sum"))
        right += int((logits.argmax(-1) == target).sum())
    return nats, right
