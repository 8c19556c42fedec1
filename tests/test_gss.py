"""GSS beyond the laws and the published numbers: its start, its errors, and modes that channels share."""

import pytest
import torch

from longreach import ops
from longreach.errors import InputError
from longreach.mixers import GSS
from longreach.ops import use_backend


def test_everything_starts_at_random() -> None:
    """Real and imaginary parts, output map and skip connection are standard normal numbers."""
    mixer = GSS(16, d_ssm=200, d_state=400)
    for name in ("A_real", "A_imag", "C", "D"):
        parameter = getattr(mixer, name)
        assert abs(parameter.mean()) < 4 / parameter.numel() ** 0.5
        assert abs(parameter.std() - 1) < 4 / parameter.numel() ** 0.5
    assert mixer.wide.out_features == 64


def test_the_kernel_is_the_sum_of_its_modes() -> None:
    """Every mode counts once: a mixer with real A and C is a sum of real exponentials."""
    mixer = GSS(4, d_ssm=3, d_state=2, imag_transform="none").double()
    with torch.no_grad():
        mixer.A_imag.zero_()
        mixer.C[..., 1] = 0
    rate = mixer.A_real.exp()
    held = (1 - torch.exp(-rate)) / rate  # the integral of the response over one step
    lags = torch.arange(6, dtype=torch.float64)
    expected = (mixer.C[..., 0] * held) @ torch.exp(-rate[:, None] * lags)
    torch.testing.assert_close(ops.modal_kernel(mixer._system(), 6), expected, rtol=1e-12, atol=1e-12)


def test_the_moving_average_of_a_head() -> None:
    mixer = GSS(4, d_ssm=6, kernel="ema", n_heads=2).double()
    a, f = mixer.alpha.sigmoid(), mixer.damping.sigmoid()
    lags = torch.arange(5, dtype=torch.float64)
    expected = (a[:, None] * ((1 - a) * f)[:, None] ** lags).repeat_interleave(3, dim=0)
    torch.testing.assert_close(ops.modal_kernel(mixer._system(), 5), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_channels_may_share_their_modes(backend: str) -> None:
    """One row of ratios stands for the same row in every channel, in values and gradients."""
    coefficient = torch.randn(2, 3, 4, dtype=torch.complex128, requires_grad=True)
    row = torch.complex(-torch.rand(1, 4).double(), torch.randn(1, 4).double()).requires_grad_()
    u = torch.randn(2, 3, 11, dtype=torch.float64, requires_grad=True)
    with use_backend(vandermonde=backend, vandermonde_adjoint=backend):
        for shared, repeated in (
            (ops.vandermonde(coefficient, row, 11), ops.vandermonde(coefficient, row.repeat(3, 1), 11)),
            (ops.vandermonde_adjoint(u, row), ops.vandermonde_adjoint(u, row.repeat(3, 1))),
        ):
            torch.testing.assert_close(shared, repeated)
            cotangent = torch.randn_like(shared)
            source = coefficient if shared.dtype == torch.float64 else u
            gradients = [torch.autograd.grad(y, (source, row), cotangent) for y in (shared, repeated)]
            torch.testing.assert_close(*gradients)


def test_as_many_rows_as_channels_or_one() -> None:
    row = torch.zeros(2, 4, dtype=torch.complex128)
    with pytest.raises(InputError, match="one row for all channels"):
        ops.vandermonde(torch.ones(3, 4, dtype=torch.complex128), row, 11)


def test_late_powers_keep_their_digits_in_float32() -> None:
    mixer = GSS(4, d_ssm=8, d_state=64)
    with torch.no_grad():
        mixer.A_real -= 8  # slow decay
    system = mixer._system()
    exact = ops.modal_kernel(ops.ModalSystem(*(x.to(torch.complex128) for x in system)), 16_384)
    assert (ops.modal_kernel(system, 16_384) - exact).abs().max() < 1e-6 * exact.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expand": 0.1}, "expand=0.1"),
        ({"d_ssm": 0}, "d_ssm=0"),
        ({"d_state": 0}, "d_state=0"),
        ({"kernel": "ema", "n_heads": 3}, "n_heads=3 must divide d_ssm=256"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GSS(8, **options)
