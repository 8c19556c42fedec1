"""What is particular to DSS: its kernels, how it starts, and modes that rise towards the end of the softmax."""

import math

import pytest
import torch
from torch import Tensor

from longreach.errors import InputError
from longreach.hippo import transition
from longreach.mixers import DSS, DSSOptions, SequenceMixer
from longreach.ops import RisingModes, rising_kernel, rising_prefill, rising_step

LENGTH = 20


def equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Assert that two results are the same up to rounding."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def exact(**options) -> DSS:
    """A mixer in float64 whose softmax is not biased by an epsilon."""
    return DSS(3, **{"d_state": 5, "dt_min": 0.1, "dt_max": 0.5, "options": DSSOptions(epsilon=0.0)} | options).double()


def sampled(mixer: DSS, A: Tensor) -> tuple[Tensor, Tensor]:
    """dt A (d, n) and its powers exp(dt A l) (d, n, l)."""
    dt = mixer.log_dt.exp()
    step = torch.complex(dt[:, :1] * A.real, dt[:, -1:] * A.imag)
    return step, torch.exp(step[..., None] * torch.arange(LENGTH))


def test_softmax_is_a_softmax() -> None:
    """K_l = Re sum_n W_n / A_n exp(dt A_n l) / sum_r exp(dt A_n r), also where Re A is positive."""
    mixer = exact(max_length=LENGTH, init="random")
    A = torch.complex(mixer.A_real, mixer.A_imag)
    assert (A.real > 0).any()
    assert (A.real < 0).any()
    _, powers = sampled(mixer, A)
    shares = powers / powers.sum(-1, keepdim=True)
    expected = torch.einsum("dn,dnl->dl", torch.view_as_complex(mixer.W)[0] / A, shares).real
    equal(mixer.kernels(LENGTH)[0], expected)
    equal(mixer.kernels(7)[0], expected[:, :7])
    (ours,) = torch.autograd.grad(mixer.kernels(LENGTH).square().sum(), mixer.A_real)
    (wished,) = torch.autograd.grad(expected.square().sum(), mixer.A_real)
    equal(ours, wished)


@pytest.mark.parametrize("version", ["exp", "exp-re-im", "exp-no-scale", "clip", "clip-no-scale"])
def test_the_other_kernels_are_exponentials(version) -> None:
    mixer = exact(version=version, options=DSSOptions(max_real=-0.4))
    with torch.no_grad():
        mixer.A_real.copy_(torch.linspace(-0.8, -0.2, 5))
    A = {
        "exp": torch.complex(-mixer.A_real.exp(), mixer.A_imag),
        "exp-re-im": torch.complex(-mixer.A_real.exp(), mixer.A_imag.exp()),
        "clip": torch.complex(mixer.A_real.clamp(max=-0.4), mixer.A_imag),
    }[version.removesuffix("-no-scale")]
    step, powers = sampled(mixer, A)
    scale = 1 if version.endswith("no-scale") else (step.exp() - 1) / A
    expected = torch.einsum("dn,dnl->dl", torch.view_as_complex(mixer.W)[0] * scale, powers).real
    equal(mixer.kernels(LENGTH)[0], expected)


def test_a_mode_that_grows_over_two_hundred_orders_stays_exact_in_every_view() -> None:
    """exp(dt A max_length) overflows float32, and as a recurrence its rounding errors would be all there is."""
    options = {"max_length": 1000, "d_state": 4, "init": "random", "dt_min": 1.0, "dt_max": 1.0}
    mixer = DSS(2, **options)
    with torch.no_grad():
        mixer.A_real.copy_(torch.tensor([0.5, 0.002, -0.002, -0.5]))
    x = torch.randn(1, 1000, 2)
    wide = DSS(2, **options).double()
    wide.load_state_dict(mixer.state_dict())
    expected = wide(x.double())
    with torch.no_grad():
        stepped, _ = SequenceMixer.prefill(mixer, x, mixer.init_state(1))
        first, state = mixer.prefill(x[:, :300], mixer.init_state(1))
        views = [mixer(x), stepped, torch.cat([first, mixer.prefill(x[:, 300:], state)[0]], dim=1)]
    for y in views:
        assert (y - expected).abs().max() < 1e-4 * expected.abs().max()


def test_rising_modes_are_what_they_say() -> None:
    log_ratio = torch.complex(-torch.rand(3, 4), torch.randn(3, 4)).to(torch.complex128)
    system = RisingModes(log_ratio, torch.randn(3, 4, dtype=torch.complex128), 12)
    lag = torch.arange(12)
    expected = (system.C[..., None] * torch.exp(log_ratio[..., None] * (11 - lag))).sum(1).real
    equal(rising_kernel(system, 12), expected)
    equal(rising_kernel(system, 5), expected[:, :5])
    u = torch.randn(2, 3, 10, dtype=torch.float64)
    start = torch.randn(2, 3, 4, dtype=torch.complex128)
    position, outputs, modes = torch.tensor([0, 2]), [], start
    for t in range(10):
        y, modes = rising_step(u[..., t], modes, system, position + t)
        outputs.append(y)
    y, after = rising_prefill(u, start, system, position)
    equal(y, torch.stack(outputs, dim=-1))
    equal(after, modes)


def test_padding_anywhere_in_a_stream_is_left_out() -> None:
    """A chunk with any mask, after any state, is read as its real positions alone."""
    mixer = DSS(3, max_length=14, d_state=4, init="random", dt_min=0.1, dt_max=0.5).double()
    x = torch.randn(5, 14, 3, dtype=torch.float64)
    mask = torch.rand(5, 8) < 0.6
    mask[0], mask[1] = False, True
    _, state = mixer.prefill(x[:, :6], mixer.init_state(5))
    actual = mixer.prefill(x[:, 6:], state, mask)
    expected = SequenceMixer.prefill(mixer, x[:, 6:], state, mask)
    equal(actual[0][mask], expected[0][mask])
    equal(actual[1].modes, expected[1].modes)
    assert actual[1].position.tolist() == expected[1].position.tolist() == (6 + mask.sum(1)).tolist()


def test_only_real_positions_count() -> None:
    """A row of 5 positions behind padding can still read as many as one of 5 without."""
    mixer = DSS(2, max_length=9, d_state=3)
    x, mask = torch.randn(2, 9, 2), torch.tensor([[False] * 4 + [True] * 5, [True] * 9])
    _, state = mixer.prefill(x, mixer.init_state(2), mask)
    mixer.prefill(x[:1, :4], type(state)(*(leaf[:1] for leaf in state)))
    with pytest.raises(InputError, match=r"10 positions is longer than the softmax .* max_length=9"):
        mixer.step(x[:, 0], state)


def test_it_starts_from_hippo() -> None:
    """A holds the upper half of the eigenvalues of the normal part of HiPPO-LegS."""
    mixer = DSS(512, max_length=9, d_state=8, dt_min=0.01, dt_max=0.5)
    A, _ = transition("legs", 16)
    eigenvalues = torch.linalg.eigvals((A - A.mT) / 2 - torch.eye(16) / 2)
    upper = sorted((value for value in eigenvalues.tolist() if value.imag > 0), key=lambda value: -value.imag)
    ours = torch.complex(mixer.A_real, mixer.A_imag).to(torch.complex128)
    equal(ours, torch.tensor(upper, dtype=torch.complex128), 1e-5)
    equal(-DSS(1, version="exp", d_state=8).A_real.exp(), mixer.A_real, 1e-6)
    equal(DSS(1, version="exp-re-im", d_state=8).A_imag.exp(), mixer.A_imag, 1e-5)
    position = (mixer.log_dt.double() - math.log(0.01)) / math.log(50)  # uniform in [0, 1]
    assert torch.equal(mixer.log_dt[:, 0], mixer.log_dt[:, 1])
    assert -1e-6 < position.min() < 0.05
    assert 0.95 < position.max() < 1 + 1e-6
    assert (position.mean() - 0.5).abs() < 0.05
    assert (mixer.W.std() - 1).abs() < 0.05


def test_hints_are_those_that_were_published() -> None:
    mixer = DSS(2, max_length=4)
    assert set(mixer.optim_hints) == {"log_dt", "A_real", "A_imag", "W"}
    assert {(hint.lr, hint.weight_decay) for hint in mixer.optim_hints.values()} == {(1e-3, False)}


def test_the_reverse_kernel_starts_at_the_next_position() -> None:
    mixer = exact(max_length=9, causal=False)
    x = torch.zeros(1, 9, 3, dtype=torch.float64)
    x[:, 4] = 1
    past, future = mixer.kernels(9)
    y = mixer(x)[0].mT
    equal(y[:, 5:], past[:, 1:5])
    equal(y[:, 4], past[:, 0] + mixer.D)
    equal(y[:, :4], future[:, :4].flip(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "max_length=None: a softmax sums over a fixed number of positions"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_length": 4, "version": "exp"}, "max_length=4: only version='softmax' has one, not 'exp'"),
        ({"version": "exp", "init": "random"}, "version='exp' cannot represent"),
        ({"version": "exp", "d_state": 0}, "d_state=0 must be positive"),
        ({"version": "exp", "options": DSSOptions(epsilon=-1.0)}, "epsilon=-1.0"),
    ],
)
def test_bad_options_are_named(arguments, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DSS(8, **arguments)
