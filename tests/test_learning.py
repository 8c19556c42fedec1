"""Every mixer learns what no memoryless model can: a small model of two layers is trained on a task for some seconds.

    echo      repeat the token of LAG positions ago
    detect    say whether a rare token stands somewhere in the sequence, for mixers that know no positions

Whoever sees only the present cannot do better than log(VOCABULARY) nats in the one and log(2) in the other, and a mixer
that works gets far below that.
"""

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from mixer_cases import DETECTORS, LEARNERS
from torch import Tensor
from torch.nn import functional as F

from longreach import mixers
from longreach.mixers import SequenceMixer
from longreach.models import MLP, Backbone, LanguageModel

VOCABULARY, LAG, LENGTH, BATCH, WIDTH, STEPS = 4, 2, 24, 16, 16, 250
RARE, RARITY = 0, 0.25
"""The token that is looked for, and how often it is there if it is."""
Task = Callable[[torch.Generator, bool], tuple[Tensor, Tensor]]
"""(randomness, whether the model is causal) -> tokens (b, l) and targets, -100 where there is none."""


def echo(generator: torch.Generator, causal: bool) -> tuple[Tensor, Tensor]:
    """Random tokens, and for each the one of LAG positions before it."""
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=generator)
    return tokens, F.pad(tokens[:, :-LAG], (LAG, 0), value=-100)


def detect(generator: torch.Generator, causal: bool) -> tuple[Tensor, Tensor]:
    """Random common tokens, in half of the rows a rare one here and there; asked for where all of it can be seen."""
    tokens = torch.randint(RARE + 1, VOCABULARY, (BATCH, LENGTH), generator=generator)
    present = torch.randint(2, (BATCH,), generator=generator)
    rare = (torch.rand(BATCH, LENGTH, generator=generator) < RARITY) & (present[:, None] == 1)
    asked = LENGTH - 1 if causal else 0
    rare[:, asked] = False
    targets = torch.full_like(tokens, -100)
    targets[:, asked] = rare.any(1)
    return tokens.masked_fill(rare, RARE), targets


MEMORYLESS: dict[Task, float] = {echo: math.log(VOCABULARY), detect: math.log(2)}
"""The least loss, in nats, without memory."""


def build(mixer: Callable[[int], SequenceMixer]) -> LanguageModel:
    """Two layers."""
    torch.manual_seed(0)
    return LanguageModel(VOCABULARY, Backbone(WIDTH, n_layers=2, mixers=[mixer], channel_mixer=MLP))


def train(model: LanguageModel, task: Task) -> float:
    """The mean loss over the last tenth of the training, in nats."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=STEPS, pct_start=0.1)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(STEPS):
        tokens, targets = task(generator, model.causal)
        loss = model.token_losses(tokens, targets).sum() / (targets >= 0).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    last = losses[-STEPS // 10 :]
    return sum(last) / len(last)


@pytest.mark.parametrize("name", LEARNERS)
def test_learns_to_remember(name: str) -> None:
    assert train(build(LEARNERS[name]), echo) < 0.5 * MEMORYLESS[echo]


@pytest.mark.parametrize("name", DETECTORS)
def test_learns_to_detect(name: str) -> None:
    assert train(build(DETECTORS[name]), detect) < 0.5 * MEMORYLESS[detect]


class Memoryless(SequenceMixer):
    """Passes every position on as it is."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, causal=True)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


@pytest.mark.parametrize("task", MEMORYLESS)
def test_without_memory_nothing_is_learnt(task: Task) -> None:
    assert train(build(Memoryless), task) > 0.95 * MEMORYLESS[task]


def test_every_mixer_has_to_learn() -> None:
    classes = {
        name
        for name in mixers.__all__
        if inspect.isclass(cls := getattr(mixers, name)) and issubclass(cls, SequenceMixer) and cls is not SequenceMixer
    }
    assert LEARNERS.keys() | DETECTORS.keys() == classes
