"""What is particular to the HiPPO memory: the equations of its cell, what it remembers, its hints and its errors."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.hippo import Measure, discretise_matrix, transition
from longreach.mixers import HiPPOMemory, HiPPOMemoryOptions, OptimHint


def equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Assert that two results are the same up to rounding."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def cell(mixer: HiPPOMemory, system, x: Tensor, h: Tensor, m: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """One position of the published cell, from its equations; `t` counts from 0."""
    u = mixer.write(torch.cat([x, h], dim=-1))
    if mixer.feedback is not None:
        u = u + (m * mixer.feedback).sum(-1)
    if mixer.scaled and t == 0:
        m = torch.zeros_like(m)
        m[..., 0] = u
    else:
        dt = 1 / t if mixer.scaled else 0.2
        abar, bbar = discretise_matrix(mixer.discretisation, *system, torch.tensor(dt, dtype=torch.float64))
        m = m @ abar.mT + u[..., None] * bbar
    seen = torch.cat([x, m.flatten(1), *([h] if mixer.options.hidden_feedback else [])], dim=-1)
    after = torch.tanh(mixer.read(seen))
    if mixer.gate is not None:
        g = torch.sigmoid(mixer.gate(seen))
        after = (1 - g) * h + g * after
    return after, m


@pytest.mark.parametrize("measure", ["scaled-legs", "legt"])
@pytest.mark.parametrize(
    "options",
    [HiPPOMemoryOptions(), HiPPOMemoryOptions(gate=False, memory_feedback=True, hidden_feedback=True)],
    ids=["published", "lmu"],
)
def test_the_cell_is_the_published_one(measure, options: HiPPOMemoryOptions) -> None:
    mixer = HiPPOMemory(3, d_state=4, n_signals=2, measure=measure, dt=0.2, options=options).double()
    if mixer.feedback is not None:
        nn.init.normal_(mixer.feedback)
    system = transition("legs" if measure == "scaled-legs" else measure, 4)
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    h, m = torch.zeros(2, 3).double(), torch.zeros(2, 2, 4).double()
    outputs = []
    for t in range(7):
        h, m = cell(mixer, system, x[:, t], h, m, t)
        outputs.append(h)
    equal(mixer(x), torch.stack(outputs, dim=1))
    y, state = mixer.prefill(x, mixer.init_state(2))
    equal(y, torch.stack(outputs, dim=1))
    equal(state.memory, m)
    assert state.position.tolist() == [7, 7]


@pytest.mark.parametrize("measure", get_args(Measure))
def test_every_measure_can_be_remembered(measure) -> None:
    mixer = HiPPOMemory(3, d_state=4, measure=measure, dt=0.1).double()
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    y, state = mixer.prefill(x[:, :4], mixer.init_state(2))
    z, _ = mixer.prefill(x[:, 4:], state)
    equal(torch.cat([y, z], dim=1), mixer(x))


@pytest.mark.parametrize("rule", ["zoh", "bilinear", "backward"])
def test_a_constant_is_remembered_as_one(rule) -> None:
    """Scaled LegS: the first function is the constant, and stays its only coefficient however long it is read."""
    mixer = HiPPOMemory(3, d_state=5, discretisation=rule).double()
    with torch.no_grad():
        mixer.write.weight.zero_()
        mixer.write.bias.fill_(0.7)
    _, state = mixer.prefill(torch.randn(1, 50, 3).double(), mixer.init_state(1))
    equal(state.memory[0, 0], torch.tensor([0.7, 0, 0, 0, 0], dtype=torch.float64))


def test_scaled_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = HiPPOMemory(3, d_state=4).double()
    x = torch.randn(2, 11, 3, dtype=torch.float64)
    expected = mixer(x)
    monkeypatch.setattr("longreach.mixers.hippo_memory.BLOCK_ELEMENTS", 3 * 16)
    equal(mixer(x), expected)


def test_padding_between_real_positions_is_left_out() -> None:
    for measure in ("scaled-legs", "legs"):
        mixer = HiPPOMemory(3, d_state=4, measure=measure, dt=0.1).double()
        x, mask = torch.randn(1, 8, 3).double(), torch.tensor([[True, False, True, True, False, False, True, True]])
        x[~mask] = float("nan")
        alone = mixer(x[mask][None])
        equal(mixer(x, mask)[mask][None], alone)
        y, state = mixer.prefill(x, mixer.init_state(1), mask)
        equal(y[mask][None], alone)
        assert state.position.tolist() == [5]


def test_trained_dynamics_have_their_own_learning_rate() -> None:
    mixer = HiPPOMemory(3, d_state=4, measure="lagt", options=HiPPOMemoryOptions(dynamics_lr_scale=0.1))
    assert mixer.optim_hints == {"change": OptimHint(lr_scale=0.1), "bbar": OptimHint(lr_scale=0.1)}
    assert {"change", "bbar"} <= {name for name, _ in mixer.named_parameters()}
    fixed = HiPPOMemory(3, d_state=4, measure="lagt")
    equal(mixer.change.detach(), fixed.change.float())
    equal(mixer.bbar.detach(), fixed.bbar.float())
    assert not fixed.optim_hints
    assert not {"change", "bbar"} & set(fixed.state_dict())


def test_long_memories_keep_their_precision_in_float32() -> None:
    """With dt = 1e-4, abar is nearly one; stored as abar - 1 it loses nothing."""
    mixer = HiPPOMemory(3, d_state=8, measure="legs", dt=1e-4)
    x = torch.randn(1, 300, 3)
    _, state = mixer.prefill(x, mixer.init_state(1))
    _, exact = mixer.double().prefill(x.double(), mixer.init_state(1))
    assert (state.memory - exact.memory).abs().max() < 2e-5 * exact.memory.abs().max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_state": 0}, "d_state=0 and n_signals=1 must be at least 1"),
        ({"n_signals": 0}, "n_signals=0"),
        ({"dt": 0.0}, "dt=0.0 positive"),
        ({"options": HiPPOMemoryOptions(dynamics_lr_scale=0.5)}, "scaled-legs.*dynamics_lr_scale=0"),
    ],
)
def test_bad_options_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        HiPPOMemory(4, **arguments)
