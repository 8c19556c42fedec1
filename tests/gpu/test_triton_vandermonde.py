"""Sums of exponentials in Triton, and their moments: against the definition, its derivatives, and themselves."""

from functools import partial

import pytest
import torch
from torch import Tensor
from triton_checks import assert_like_torch, repetitions, values_and_gradients

from longreach.ops import use_backend, vandermonde, vandermonde_adjoint
from longreach.ops.triton import vandermonde as launcher

SHAPES = [(1, 1, 1, 1), (2, 2, 5, 7), (1, 2, 17, 256), (2, 1, 33, 2100)]
"""Rows, channels, modes and length, on both sides of the borders between tilings."""


def arguments(b: int, d: int, n: int, length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients, decaying and growing modes of any frequency, and a sequence."""
    log_ratio = torch.complex(torch.randn(d, n) / length, 3 * torch.randn(d, n))
    values = torch.randn(b, d, n, dtype=torch.complex64), log_ratio, torch.randn(b, d, length)
    c, log_ratio, u = (x.to(device) for x in values)
    return c, log_ratio, u


@pytest.mark.parametrize("shape", SHAPES)
def test_sums(shape: tuple[int, ...], device: torch.device) -> None:
    c, log_ratio, _ = arguments(*shape, device)
    assert_like_torch("vandermonde", partial(vandermonde, length=shape[-1]), (c, log_ratio), judge="blocked")


@pytest.mark.parametrize("shape", SHAPES)
def test_adjoint(shape: tuple[int, ...], device: torch.device) -> None:
    _, log_ratio, u = arguments(*shape, device)
    assert_like_torch("vandermonde_adjoint", vandermonde_adjoint, (u, log_ratio), judge="blocked")


def test_late_powers_keep_their_phase(device: torch.device) -> None:
    """At position 4,000 of a mode that turns half around every step, float32 would know two digits of the phase."""
    c, log_ratio, u = arguments(1, 1, 3, 4000, device)
    log_ratio = 1000 * log_ratio.imag * 1j
    assert_like_torch("vandermonde", partial(vandermonde, length=4000), (c, log_ratio))
    assert_like_torch("vandermonde_adjoint", vandermonde_adjoint, (u, log_ratio), judge="blocked")


def test_powers_leave_the_range_of_numbers(device: torch.device) -> None:
    """Down to zero, without a trace."""
    c, log_ratio = torch.ones(1, 2, device=device) + 0j, torch.tensor([[-1.0, -100.0]], device=device) + 1j
    with use_backend(vandermonde="triton"):
        y = vandermonde(c, log_ratio, 300)
        torch.testing.assert_close(y, vandermonde.backends["reference"](c, log_ratio, 300))
        assert torch.equal(y[0, 120:], torch.zeros_like(y[0, 120:]))


def test_shared_modes_views_and_more_axes(device: torch.device) -> None:
    c, log_ratio, u = arguments(6, 4, 3, 20, device)
    c, u, log_ratio = c.view(2, 3, 4, 3).conj(), u.view(2, 3, 4, 20)[..., ::2], log_ratio[:1].mT.contiguous().mT
    for operator, inputs in ((partial(vandermonde, length=9), c), (vandermonde_adjoint, u)):
        with use_backend(vandermonde="triton", vandermonde_adjoint="triton"):
            found = operator(inputs, log_ratio)
        with use_backend(vandermonde="reference", vandermonde_adjoint="reference"):
            torch.testing.assert_close(found, operator(inputs, log_ratio), rtol=1e-5, atol=1e-5)


def test_programs_take_several_rows(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    c, log_ratio, u = arguments(5, 1, 3, 20, device)
    both = []
    for enough in (1 << 30, 2):
        monkeypatch.setattr(launcher, "ENOUGH", enough)
        both.append([launcher._sums(c, log_ratio, 20), *launcher._moments(u, log_ratio, False)])
    for one, several in zip(*both, strict=True):
        assert torch.equal(one, several)


def test_the_same_bits_every_time_and_neighbours_change_none(device: torch.device) -> None:
    c, log_ratio, u = arguments(2, 2, 3, 40, device)
    for name, function, inputs in (
        ("vandermonde", partial(vandermonde, length=40), (c, log_ratio)),
        ("vandermonde_adjoint", vandermonde_adjoint, (u, log_ratio)),
    ):
        with use_backend(**{name: "triton"}):
            cotangent = torch.ones_like(function(*inputs))
        first = values_and_gradients(name, "triton", function, inputs, cotangent)
        for _ in range(repetitions(device)):
            again = values_and_gradients(name, "triton", function, inputs, cotangent)
            assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
        inputs[0][1, 0, 1] = torch.nan
        found, *_ = values_and_gradients(name, "triton", function, inputs, cotangent)
        assert found[1, 0].isnan().all()
        assert found.isnan().sum() == found[1, 0].numel()


def test_is_a_well_behaved_operator_of_torch(device: torch.device) -> None:
    c, log_ratio, u = (x.requires_grad_() for x in arguments(2, 2, 3, 9, device))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.longreach.vandermonde_triton, (c, log_ratio, 9), test_utils=tests)
    torch.library.opcheck(torch.ops.longreach.vandermonde_triton_moments, (u, log_ratio, True), test_utils=tests)
    with use_backend(vandermonde="triton"):
        (first,) = torch.autograd.grad(vandermonde(c, log_ratio, 9).sum(), log_ratio, create_graph=True)
    (second,) = torch.autograd.grad(first.abs().sum(), c)
    assert second.isfinite().all()


def test_no_length_compiles_anew(device: torch.device, idle: None, variants: set[tuple[str, str]]) -> None:
    """Two tilings of positions, two of modes; the moments also from the other end."""
    for length in (*range(1, 200), 256, 257, 1000, 4096, 70001):
        for n in (1, 16, 64):
            c, log_ratio, u = arguments(1 + length % 3, 1 + length % 2, n, length, torch.device("meta"))
            launcher._sums(c, log_ratio, length)
            for reverse in (False, True):
                launcher._moments(u, log_ratio, reverse)
    names = [name for name, _ in variants]
    assert {name: names.count(name) for name in names} == {"sums": 4, "moments": 8}
