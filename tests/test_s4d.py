"""What is particular to S4D: how it starts, what its options do, and masks in the middle of a stream."""

import math

import pytest
import torch
from torch import Tensor

from longreach.errors import InputError
from longreach.hippo import DiagonalInit, diagonal_system
from longreach.mixers import S4D, S4DOptions, SequenceMixer

TRANSFORMS = ["exp", "softplus", "sigmoid", "relu", "none"]


def equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Assert that two results are the same up to rounding."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def impulse_response(mixer: S4D, length: int) -> Tensor:
    """The output of all channels on a one followed by zeros, without the skip connection: (d, l)."""
    x = torch.zeros(1, length, mixer.d_model, dtype=torch.float64)
    x[:, 0] = 1
    y = mixer(x)[0].mT.clone()
    y[:, 0] -= mixer.D
    return y


def continuous(mixer: S4D) -> tuple[Tensor, Tensor]:
    """A and the time steps that a zero-order-hold mixer with B = 1 has, read off its sampled system."""
    log_abar, bbar, _ = mixer._system()
    A = torch.expm1(log_abar) / bbar
    return A, (log_abar / A).real


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("fast", [False, True])
def test_time_steps_start_log_uniform(transform, fast: bool) -> None:
    options = S4DOptions(dt_transform=transform, dt_fast=fast, dt_tied=False)
    mixer = S4D(64, d_state=64, init="lin", dt_min=0.01, dt_max=0.5, options=options).double()
    _, dt = continuous(mixer)
    position = (dt / 0.01).log() / math.log(50)  # uniform in [0, 1]
    assert -0.02 < position.min() < 0.05
    assert 0.95 < position.max() < 1.02
    assert (position.mean() - 0.5).abs() < 0.05


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_modes_start_where_they_should(transform) -> None:
    scale = DiagonalInit(imag_scale=0.2)
    for options in (S4DOptions(real_transform=transform), S4DOptions(imag_transform=transform)):
        mixer = S4D(4, d_state=4, init="lin", init_options=scale, options=options).double()
        expected = diagonal_system("lin", 4, 4, scale).A
        equal(continuous(mixer)[0], expected, 3e-4)  # at least 1e-4, which relu adds once more


def test_a_start_that_no_parameter_reaches_is_refused() -> None:
    with pytest.raises(InputError, match="real_transform='sigmoid' cannot give 4"):
        S4D(4, d_state=8, init="real", options=S4DOptions(real_transform="sigmoid"))


def test_systems_are_shared_in_turn() -> None:
    """Channel i uses system i mod n_ssm."""
    mixer = S4D(6, d_state=4, init="rand", n_ssm=2).double()
    A, _ = continuous(mixer)
    equal(A, A[:2].repeat(3, 1))
    assert not torch.allclose(A[0], A[1])
    assert mixer.A_real.shape == (2, 2)


def test_time_steps_can_differ_between_modes() -> None:
    assert S4D(3, d_state=8).inv_dt.shape == (3, 1)
    assert S4D(3, d_state=8, options=S4DOptions(dt_tied=False)).inv_dt.shape == (3, 4)


def test_kernel_length_cuts_the_kernel() -> None:
    mixer = S4D(3, d_state=4, options=S4DOptions(kernel_length=5)).double()
    whole = S4D(3, d_state=4).double()
    whole.load_state_dict(mixer.state_dict())
    response = impulse_response(mixer, 12)
    equal(response[:, :5], impulse_response(whole, 12)[:, :5])
    equal(response[:, 5:], torch.zeros(3, 7, dtype=torch.float64))


def test_the_window_does_not_drift() -> None:
    """After a thousand steps what left the window has still been taken out of the modes exactly."""
    mixer = S4D(2, d_state=8, dt_min=0.1, dt_max=0.3, options=S4DOptions(kernel_length=6)).double()
    x = torch.randn(1, 1000, 2, dtype=torch.float64)
    with torch.no_grad():
        y, state = SequenceMixer.prefill(mixer, x, mixer.init_state(1))
        equal(y, mixer(x))
        equal(state.modes, mixer.prefill(x, mixer.init_state(1))[1].modes)


def test_rate_samples_the_same_system() -> None:
    """A bilinear or held system at rate 2 is the one whose time steps are twice as long."""
    mixer = S4D(3, d_state=4, discretisation="bilinear", options=S4DOptions(rate=2.0, kernel_length=9)).double()
    twice = S4D(3, d_state=4, discretisation="bilinear").double()
    twice.load_state_dict(mixer.state_dict())
    with torch.no_grad():
        twice.inv_dt += math.log(2)
    equal(impulse_response(mixer, 12)[:, :4], impulse_response(twice, 12)[:, :4])
    assert mixer.taps == 4


@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_bandlimit_silences_fast_modes(rate: float) -> None:
    """With dt = 0.5, S4D-Lin turns n / 4 times in a sample at rate 1: modes from 0.3 Nyquist = 0.15 turns on go."""
    options = S4DOptions(bandlimit=0.3, rate=rate)
    mixer = S4D(2, d_state=8, init="lin", dt_min=0.5, dt_max=0.5, options=options).double()
    free = S4D(2, d_state=8, init="lin", options=S4DOptions(rate=rate)).double()
    free.load_state_dict(mixer.state_dict())
    with torch.no_grad():
        free.C[:, :, 1:] = 0
    equal(impulse_response(mixer, 8), impulse_response(free, 8))


def test_real_mixer_is_a_set_of_moving_averages() -> None:
    mixer = S4D(2, d_state=3, init="real", options=S4DOptions(real=True)).double()
    assert {name: tuple(p.shape) for name, p in mixer.named_parameters()} == {
        "A_real": (2, 3), "B": (2, 3), "C": (1, 2, 3), "D": (2,), "inv_dt": (2, 1)
    }  # fmt: skip
    response = impulse_response(mixer, 6)
    decay, dt = mixer.A_real.exp(), mixer.inv_dt.exp()
    weight = 2 * mixer.C[0] * mixer.B * (1 - (-decay * dt).exp()) / decay
    lag = torch.arange(6, dtype=torch.float64)
    equal(response, (weight[..., None] * (-(decay * dt)[..., None] * lag).exp()).sum(1))


def test_the_reverse_kernel_starts_at_the_next_position() -> None:
    mixer = S4D(2, d_state=4, causal=False).double()
    x = torch.zeros(1, 9, 2, dtype=torch.float64)
    x[:, 4] = 1
    past, future = mixer.kernels(9)
    y = mixer(x)[0].mT
    equal(y[:, 5:], past[:, 1:5])
    equal(y[:, 4], past[:, 0] + mixer.D)
    equal(y[:, :4], future[:, :4].flip(1))


@pytest.mark.parametrize("options", [S4DOptions(), S4DOptions(kernel_length=4)], ids=["infinite", "window"])
def test_padding_anywhere_in_a_stream_is_left_out(options: S4DOptions) -> None:
    """A chunk with any mask, after any state, is read as its real positions alone."""
    mixer = S4D(3, d_state=4, options=options).double()
    x = torch.randn(5, 14, 3, dtype=torch.float64)
    mask = torch.rand(5, 8) < 0.6
    mask[0], mask[1] = False, True
    _, state = mixer.prefill(x[:, :6], mixer.init_state(5))
    actual = mixer.prefill(x[:, 6:], state, mask)
    expected = SequenceMixer.prefill(mixer, x[:, 6:], state, mask)
    equal(actual[0][mask], expected[0][mask])
    equal(actual[1].modes, expected[1].modes)
    equal(actual[1].window, expected[1].window)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": S4DOptions(real=True)}, "needs init='real'"),
        ({"init": "all", "n_ssm": 2}, "multiple of 4, not 2"),
    ],
)
def test_bad_options_are_named(arguments, message: str) -> None:
    with pytest.raises(InputError, match=message):
        S4D(8, **arguments)
