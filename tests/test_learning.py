"""Every mixer learns what no memoryless model can: a small model of two layers is trained on a task for some seconds.

The task is to repeat the token of LAG positions ago.  Tokens are uniform and independent, so whoever sees only the
present cannot do better than log(VOCABULARY) nats, and a mixer that works gets far below that.
"""

import inspect
import math

import pytest
import torch
from mixer_cases import LEARNERS
from torch import Tensor
from torch.nn import functional as F

from longreach import mixers
from longreach.mixers import SequenceMixer
from longreach.models import MLP, Backbone, LanguageModel

VOCABULARY, LAG, LENGTH, BATCH, WIDTH, STEPS = 4, 2, 24, 16, 16, 250
MEMORYLESS = math.log(VOCABULARY)
"""The least loss, in nats, without memory."""


def echo(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random tokens (b, l), and for each the one of LAG positions before it; -100 where there is none."""
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=generator)
    return tokens, F.pad(tokens[:, :-LAG], (LAG, 0), value=-100)


def train(model: LanguageModel) -> float:
    """The mean loss over the last tenth of the training, in nats."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=STEPS, pct_start=0.1)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(STEPS):
        tokens, targets = echo(generator)
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
    torch.manual_seed(0)
    backbone = Backbone(WIDTH, n_layers=2, mixers=[LEARNERS[name]], channel_mixer=MLP)
    assert train(LanguageModel(VOCABULARY, backbone)) < 0.5 * MEMORYLESS


class Memoryless(SequenceMixer):
    """Passes every position on as it is."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, causal=True)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


def test_without_memory_nothing_is_learnt() -> None:
    torch.manual_seed(0)
    backbone = Backbone(WIDTH, n_layers=2, mixers=[Memoryless], channel_mixer=MLP)
    assert train(LanguageModel(VOCABULARY, backbone)) > 0.95 * MEMORYLESS


def test_every_mixer_has_to_learn() -> None:
    classes = {
        name
        for name in mixers.__all__
        if inspect.isclass(cls := getattr(mixers, name)) and issubclass(cls, SequenceMixer) and cls is not SequenceMixer
    }
    assert set(LEARNERS) == classes
