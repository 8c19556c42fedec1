"""What is particular to Liquid-S4: the terms of its recurrence, and the scan that computes them."""

import math
import sys

import pytest
import torch
from torch import Tensor

from longreach.errors import InputError
from longreach.hippo import DiagonalInit, diagonal_system
from longreach.mixers import LiquidS4, SequenceMixer
from longreach.ops import ModalSystem, liquid_scan, use_backend

MODULE = sys.modules["longreach.ops.liquid_scan"]  # the operator has the name of its module


def equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Assert that two results are the same up to rounding."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def lively(**options) -> LiquidS4:
    """A mixer in float64 in which products of inputs weigh as much as inputs."""
    mixer = LiquidS4(3, **{"d_state": 4, "dt_min": 0.2, "dt_max": 0.5, "init": "lin"} | options).double()
    with torch.no_grad():
        mixer.B[..., 0].fill_(2.0)
    return mixer


def test_the_second_term_correlates_pairs() -> None:
    """y_k = sum_i K_{k-i} u_i + sum_{i<j<=k} 2 Re(C abar^(k-i-1) bbar^2) u_i u_j + D u_k."""
    mixer = lively()
    (log_abar, bbar, C), length = mixer._systems()[0], 7
    x = torch.randn(1, length, 3, dtype=torch.float64)
    expected = mixer.D * x[0]
    for k in range(length):
        for i in range(k + 1):
            expected[k] += 2 * (C * (log_abar * (k - i)).exp() * bbar).real.sum(-1) * x[0, i]
            for j in range(i + 1, k + 1):
                pair = 2 * (C * (log_abar * (k - i - 1)).exp() * bbar**2).real.sum(-1)
                expected[k] += pair * x[0, i] * x[0, j]
    equal(mixer(x)[0], expected)


def test_all_terms_together_are_the_recurrence() -> None:
    """No term has a higher degree than there are positions; and before that, each one counts."""
    whole = lively(order=None)
    x = torch.randn(2, 8, 3, dtype=torch.float64)
    expected = whole(x)
    errors = []
    for order in (2, 5, 8):
        part = lively(order=order)
        part.load_state_dict(whole.state_dict())
        errors.append((part(x) - expected).abs().max().item())
    assert errors[0] > errors[1] > 1e-6
    assert errors[2] < 1e-12


def test_the_recurrence_is_the_published_one() -> None:
    mixer = lively(order=None)
    log_abar, bbar, C = mixer._systems()[0]
    x = torch.randn(1, 9, 3, dtype=torch.float64)
    state, outputs = torch.zeros_like(bbar), []
    for u in x[0]:
        state = (log_abar.exp() + bbar * u[:, None]) * state + bbar * u[:, None]
        outputs.append(2 * (C * state).real.sum(-1) + mixer.D * u)
    equal(mixer(x)[0], torch.stack(outputs))


def case(full: bool, masked: bool) -> tuple[tuple[Tensor, Tensor, ModalSystem], dict]:
    """Arguments of the operator: 2 rows, 3 channels, 2 modes, 53 positions."""
    log_abar = torch.complex(-torch.rand(3, 2), torch.randn(3, 2)).to(torch.complex128)
    system = ModalSystem(log_abar, *(torch.randn(2, 3, 2, dtype=torch.complex128) / 4).unbind())
    modes = torch.randn(2, 1 if full else 3, 3, 2, dtype=torch.complex128)
    mask = torch.rand(2, 53) < 0.7 if masked else None
    return (torch.randn(2, 3, 53, dtype=torch.float64), modes, system), {"full": full, "mask": mask}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [1, 2**20])
def test_backends_compute_the_definition(full: bool, masked: bool, chunk: int, monkeypatch) -> None:
    """Values and gradients, in stretches of 16 positions, of which the last is shorter, or all at once."""
    monkeypatch.setattr(MODULE, "CHUNK", chunk)
    (u, modes, system), options = case(full, masked)
    leaves = [tensor.requires_grad_() for tensor in (u, modes, *system)]
    results = {}
    for backend in liquid_scan.backends:
        with use_backend(liquid_scan=backend):
            y, after = liquid_scan(u, modes, system, **options)
        seen = torch.ones_like(y) if options["mask"] is None else options["mask"][:, None].expand_as(y).double()
        loss = (y * seen).square().sum() + after.abs().square().sum()
        results[backend] = [y * seen, after, *torch.autograd.grad(loss, leaves)]
    for actual, expected in zip(results["chunked"], results["reference"], strict=True):
        equal(actual, expected)


def test_long_sequences_do_not_keep_all_modes(monkeypatch) -> None:
    """What is kept for the backward pass is the state between stretches, not every mode at every position."""
    kept: set[tuple[int, int]] = set()

    def keep(tensor: Tensor) -> Tensor:
        kept.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
        return tensor

    (u, modes, system), _ = case(full=False, masked=False)
    u = torch.randn(2, 3, 2000, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(MODULE, "CHUNK", 100 * modes[:, 0].numel())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y, _ = liquid_scan(u, modes, system)
    all_modes = 2000 * modes.numel() * 16
    assert sum(size for _, size in kept) < all_modes / 10
    y.sum().backward()
    assert u.grad is not None


def test_wrong_shapes_are_named() -> None:
    (u, modes, system), _ = case(full=False, masked=False)
    with pytest.raises(InputError, match="one term if full=True"):
        liquid_scan(u, modes, system, full=True)
    with pytest.raises(InputError, match="modes of the state"):
        liquid_scan(u[:1], modes, system)


def test_padding_anywhere_in_a_stream_is_left_out() -> None:
    """A chunk with any mask, after any state, is read as its real positions alone; even if padding is NaN."""
    for order in (2, None):
        mixer = lively(order=order)
        x = torch.randn(5, 14, 3, dtype=torch.float64)
        mask = torch.rand(5, 8) < 0.6
        mask[0], mask[1] = False, True
        _, state = mixer.prefill(x[:, :6], mixer.init_state(5))
        expected = SequenceMixer.prefill(mixer, x[:, 6:], state, mask)
        x[:, 6:][~mask] = float("nan")
        actual = mixer.prefill(x[:, 6:], state, mask)
        equal(actual[0][mask], expected[0][mask])
        equal(actual[1].modes, expected[1].modes)


def test_the_other_direction_is_read_from_the_next_position_on() -> None:
    mixer = lively(causal=False)
    forward, backward = lively(), lively()
    shared = {name: value for name, value in mixer.state_dict().items() if name != "C"}
    forward.load_state_dict(shared | {"C": mixer.C[:1]})
    backward.load_state_dict(shared | {"C": mixer.C[1:], "D": torch.zeros(3)})
    x = torch.randn(1, 9, 3, dtype=torch.float64)
    after = backward(x.flip(1)).flip(1)
    equal(mixer(x)[:, :-1], (forward(x)[:, :-1] + after[:, 1:]))
    equal(mixer(x)[:, -1], forward(x)[:, -1])


@pytest.mark.parametrize("init", ["legs", "lin", "inv"])
def test_it_starts_as_s4d_does(init) -> None:
    mixer = LiquidS4(64, d_state=8, init=init, n_ssm=2, dt_min=0.01, dt_max=0.5)
    A, B = diagonal_system(init, 8, 2, DiagonalInit())
    equal(torch.complex(-mixer.A_real.exp(), mixer.A_imag), A.to(torch.complex64), 1e-6)
    equal(torch.view_as_complex(mixer.B), B.to(torch.complex64), 1e-6)
    position = (mixer.log_dt.double() - math.log(0.01)) / math.log(50)  # uniform in [0, 1]
    assert -1e-6 < position.min() < 0.1
    assert 0.9 < position.max() < 1 + 1e-6
    assert (torch.view_as_complex(mixer.C).abs().square().mean() - 1).abs() < 0.2


def test_hints_are_those_of_s4() -> None:
    mixer = LiquidS4(2, d_state=4)
    assert set(mixer.optim_hints) == {"log_dt", "A_real", "A_imag", "B"}
    assert {(hint.lr, hint.weight_decay) for hint in mixer.optim_hints.values()} == {(1e-3, False)}


def test_systems_are_shared_in_turn() -> None:
    """Channel i uses system i mod n_ssm."""
    mixer = LiquidS4(6, d_state=4, n_ssm=2, dt_min=0.1, dt_max=0.1).double()
    with torch.no_grad():
        mixer.A_imag[1] += 1.0
    log_abar, _, _ = mixer._systems()[0]
    equal(log_abar, log_abar[:2].repeat(3, 1))
    assert not torch.allclose(log_abar[0], log_abar[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 1}, "order=1 must be at least 2"),
    ],
)
def test_bad_options_are_named(arguments, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LiquidS4(8, **arguments)
