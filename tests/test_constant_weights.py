"""What is kept of constant weights: nothing unless it is asked for, and then what would be computed anyway."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from longreach.bench.mixer_costs import build_mixer, mixer_names
from longreach.errors import InputError
from longreach.inference import GenerationOptions
from longreach.inference.generation import TokenStream
from longreach.mixers import S4D, Hyena, SequenceMixer
from longreach.mixers.constant_weights import Kept, constant_weights, of_weights
from longreach.models import MLP, Backbone, LanguageModel

KEEPING = [
    *("CKConv", "DSS", "GSS", "H3", "Hyena", "LiquidS4", "LongConv", "Mega", "RWKV4", "RWKV5", "S4", "S4D", "S5"),
    *("SGConv", "StripedHyena"),
]


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls = 0

    @of_weights
    def times(self, x: float) -> Tensor:
        self.calls += 1
        return self.weight * x


def test_each_argument_and_module_is_computed_once() -> None:
    a, b, kept = Scale(), Scale(), {}
    for _ in range(2):  # what was kept is found again in another block
        with torch.no_grad(), constant_weights(kept):
            assert [float(a.times(2.0)), float(a.times(2.0)), float(a.times(3.0))] == [2.0, 2.0, 3.0]
            assert float(b.times(2.0)) == 2.0
    assert (a.calls, b.calls) == (2, 1)


def test_nothing_is_kept_elsewhere() -> None:
    scale, kept = Scale(), {}
    with torch.no_grad():
        for _ in range(2):
            scale.times(1.0)
        with constant_weights({}), constant_weights(kept):
            pass
        scale.times(1.0)
    with constant_weights(kept):
        for _ in range(2):
            scale.times(1.0).backward()
    assert scale.calls == 5
    assert scale.weight.grad == 2
    assert not kept


@pytest.mark.parametrize("name", KEEPING)
@torch.no_grad()
def test_steps_are_the_same_and_new_weights_count_afterwards(name: str) -> None:
    mixer, kept = build_mixer(name, 64, 80).eval(), {}
    for parameter in mixer.parameters():  # some start as zeros
        parameter.add_(0.01 * torch.randn_like(parameter))
    _, state = mixer.prefill(torch.randn(1, 62, 64), mixer.init_state(1))

    def outputs() -> Tensor:
        found, current = [], state
        for x_t in x:
            y, current = mixer.step(x_t[None], current)
            found.append(y)
        return torch.cat(found)

    x = torch.randn(9, 64)
    expected = outputs()
    with constant_weights(kept):
        for _ in range(2):
            assert torch.equal(outputs(), expected)
    assert kept
    for parameter in mixer.parameters():
        parameter.mul_(1.01)
    changed = outputs()
    assert not torch.equal(changed, expected)
    with constant_weights(Kept()):
        assert torch.equal(outputs(), changed)


def test_all_mixers_that_keep_are_tested() -> None:
    assert set(KEEPING) == {name for name in mixer_names() if _keeps(name)}


@torch.no_grad()
def _keeps(name: str) -> bool:
    mixer, kept = build_mixer(name, 64, 80).eval(), {}
    try:
        with constant_weights(kept):
            mixer.step(torch.randn(1, 64), mixer.init_state(1))
    except InputError:
        return False
    return bool(kept)


@pytest.mark.parametrize("mixer", [lambda d: S4D(d), lambda d: Hyena(d, max_length=200)])
def test_generation_keeps(mixer: Callable[[int], SequenceMixer], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens are those of a model that keeps nothing, for fewer evaluations."""
    model = LanguageModel(17, Backbone(8, n_layers=1, mixers=[mixer], channel_mixer=MLP))
    options = GenerationOptions(max_new_tokens=70, temperature=0.0)
    stream = TokenStream(model, [[1, 2, 3], [4]], options)
    first = [stream.advance() for _ in range(70)]
    monkeypatch.setattr("longreach.inference.generation.constant_weights", lambda kept: torch.no_grad())
    plain = TokenStream(model, [[1, 2, 3], [4]], options)
    assert [plain.advance() for _ in range(70)] == first
    assert not plain._kept
    assert 1 <= len(stream._kept) < 70
