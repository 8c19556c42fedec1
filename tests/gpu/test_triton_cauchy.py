"""Sums of simple poles in Triton: against the definition, its derivatives, and themselves."""

from functools import partial

import pytest
import torch
from torch import Tensor
from triton_checks import assert_like_torch, repetitions, values_and_gradients

from longreach.ops import cauchy, use_backend
from longreach.ops.triton import cauchy as launcher

SHAPES = [(1, 1, 1, 1), (1, 2, 17, 300), (2, 2, 3, 9), (5, 1, 4, 130)]
"""Rows, channels, poles and points."""


def arguments(b: int, d: int, n: int, k: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Points on a circle around all poles, with room between: coefficients, poles, points."""
    w = 0.4 * torch.polar(torch.rand(d, n).double() + 1, torch.randn(d, n).double())
    z = torch.polar(torch.full((k,), 1.1).double(), torch.linspace(0.1, 3.2, k).double())
    v, w, z = (x.to(device, dtype) for x in (torch.randn(b, d, n, dtype=torch.complex128), w, z))
    return v, w, z


def at_points(v: Tensor, w: Tensor, z: Tensor) -> Tensor:
    """The operator, with points for which nothing asks a gradient."""
    return cauchy(v, z.to(v.dtype), w)


@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_definition(shape: tuple[int, ...], device: torch.device) -> None:
    v, w, z = arguments(*shape, torch.complex128, device)
    cotangent = torch.randn(*shape[:2], shape[-1], dtype=z.dtype, device=device)
    both = [values_and_gradients("cauchy", name, partial(at_points, z=z), (v, w), cotangent) for name in BOTH]
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


BOTH = ("triton", "reference")


def test_float32_is_as_accurate_as_the_definition(device: torch.device) -> None:
    for rows in (1, 4):
        v, w, z = arguments(rows, 2, 16, 200, torch.complex64, device)
        assert_like_torch("cauchy", partial(at_points, z=z), (v, w))


def test_loses_no_digit_next_to_a_pole(device: torch.device) -> None:
    """Points at 1e-4 from the poles, in float32: a product of both denominators loses three digits of seven there."""
    w = torch.polar(torch.ones(1, 20), torch.linspace(0.3, 2.8, 20)[None]).to(device)
    v = torch.randn(1, 1, 20, dtype=torch.complex64).to(device)
    assert_like_torch("cauchy", partial(at_points, z=w[0] * 1.0001), (v, w))


def test_views_and_more_axes(device: torch.device) -> None:
    v, w, z = arguments(6, 2, 4, 10, torch.complex128, device)
    values = v.view(2, 3, 2, 4).conj()[..., ::2], z[::3], w.mT.contiguous().mT[:, ::2]
    with use_backend(cauchy="triton"):
        found = cauchy(*values), cauchy(values[0][0, 0], *values[1:])
    torch.testing.assert_close(found[0], cauchy.backends["reference"](*values))
    torch.testing.assert_close(found[1], found[0][0, 0])


def test_refuses_what_it_has_no_kernel_for(device: torch.device) -> None:
    v, w, z = arguments(1, 2, 3, 4, torch.complex128, device)
    assert "no gradient for the points" in str(cauchy.refusal("triton", v, z.clone().requires_grad_(), w))
    assert "one complex dtype" in str(cauchy.refusal("triton", v, z.to(torch.complex64), w))


def test_is_a_well_behaved_operator_of_torch(device: torch.device) -> None:
    v, w, z = arguments(1, 2, 2, 3, torch.complex128, device)
    torch.library.opcheck(torch.ops.longreach.cauchy_triton, (v.requires_grad_(), z, w.requires_grad_()))
    with use_backend(cauchy="triton"):
        assert torch.autograd.gradgradcheck(lambda v, w: cauchy(v, z, w), (v, w), fast_mode=True)


def test_the_same_bits_every_time_and_neighbours_change_none(device: torch.device) -> None:
    v, w, z = arguments(3, 2, 3, 70, torch.complex64, device)
    cotangent = torch.ones(3, 2, 70, dtype=v.dtype, device=device)
    first = values_and_gradients("cauchy", "triton", partial(at_points, z=z), (v, w), cotangent)
    for _ in range(repetitions(device)):
        again = values_and_gradients("cauchy", "triton", partial(at_points, z=z), (v, w), cotangent)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    v[1, 1, 0] = torch.nan
    found, *_ = values_and_gradients("cauchy", "triton", partial(at_points, z=z), (v, w), cotangent)
    assert found[1, 1].isnan().all()
    assert found.isnan().any(-1).sum() == 1


def test_no_length_compiles_anew(device: torch.device, idle: None, variants: set[tuple[str, str]]) -> None:
    """One row, or several, in each precision."""
    for points in (*range(1, 200), 256, 1000, 65537):
        for rows, poles in ((1, 1), (2, 16), (8, 33)):
            v, w, z = arguments(rows, 1 + points % 2, poles, points, torch.complex64, device)
            launcher._sums(v, z, w)
            launcher._adjoint(torch.empty(*v.shape[:2], points, dtype=v.dtype, device=device), v, z, w)
    names = [name for name, _ in variants]
    assert {name: names.count(name) for name in names} == {"sums": 2, "adjoint": 2}
