"""The compiled sums of poles: against the definition, its derivatives, and exact sums next to a pole."""

import numpy as np
import pytest
import torch
from torch import Tensor

from longreach import ops
from longreach.ops import use_backend
from longreach.ops.native import MISSING

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def complex_normal(*shape: int, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def arguments(rows: int, channels: int, poles: int, points: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Points on a circle around all poles, with room between."""
    w = 0.4 * torch.polar(torch.rand(channels, poles).double() + 1, torch.randn(channels, poles).double())
    z = torch.polar(torch.full((points,), 1.1).double(), torch.linspace(0, 3.2, points).double())
    v = complex_normal(rows, channels, poles)
    return v.to(dtype).requires_grad_(), z.to(dtype), w.to(dtype).requires_grad_()


def with_backend(name: str, v: Tensor, z: Tensor, w: Tensor, grad: Tensor | None = None) -> list[Tensor]:
    """The sums, and the gradients that `grad` gives."""
    with use_backend(cauchy=name):
        r = ops.cauchy(v, z, w)
        return [r] if grad is None else [r, *torch.autograd.grad(r, (v, w), grad)]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("channels", "poles", "points"), [(1, 1, 1), (2, 5, 17), (3, 2, 1300)])
def test_is_the_definition(rows: int, channels: int, poles: int, points: int) -> None:
    inputs = arguments(rows, channels, poles, points, torch.complex128)
    grad = complex_normal(rows, channels, points)
    expected = with_backend("reference", *inputs, grad)
    for a, e in zip(with_backend("native", *inputs, grad), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-11)


def test_float32_is_as_accurate_as_the_definition() -> None:
    inputs, grad = arguments(2, 3, 16, 700, torch.complex64), complex_normal(2, 3, 700, dtype=torch.complex64)
    wide = [x.detach().to(torch.complex128).requires_grad_(x.requires_grad) for x in inputs]
    exact = with_backend("reference", *wide, grad.to(torch.complex128))
    reference, native = with_backend("reference", *inputs, grad), with_backend("native", *inputs, grad)
    for e, r, n in zip(exact, reference, native, strict=True):
        assert n.dtype == torch.complex64
        assert (n - e).norm() <= 4 * (r - e).norm()


def test_loses_no_digit_next_to_a_pole() -> None:
    """Against long doubles, on the circle that S4 takes for 16,384 lags and poles down to 1e-4 from it and the axis."""
    distance, angle = torch.logspace(-4, -1, 32).double(), torch.logspace(-4, 0.4, 32).double()
    w = torch.polar(1 - torch.cat([distance, distance.flip(0)]), torch.cat([angle, angle]))[None]
    angles = torch.cat([torch.linspace(0, 3.14, 300).double(), w[0].angle()])
    z = torch.polar(torch.full_like(angles, 1.0004), angles)
    v = complex_normal(1, 64)
    V, Z, W = (x.numpy().astype(np.clongdouble) for x in (v, z, w))
    exact = (V[..., None] / (Z - W[..., None]) + V.conj()[..., None] / (Z - W.conj()[..., None])).sum(-2)
    (r,) = with_backend("native", v, z, w)
    assert abs(r.numpy() - exact).max() < 2e-15 * abs(exact).max()


def test_takes_views_and_no_rows_axis() -> None:
    v, z, w = arguments(1, 2, 3, 9, torch.complex128)
    expected = with_backend("reference", v[0].conj(), z, w)
    spread = torch.stack([z, z], dim=1)[:, 1]
    torch.testing.assert_close(with_backend("native", v[0].conj(), spread, w.mT.contiguous().mT), expected)


def test_is_a_well_behaved_operator_of_torch() -> None:
    inputs = arguments(2, 2, 3, 5, torch.complex128)
    torch.library.opcheck(torch.ops.longreach.cauchy, inputs)
    constants = [x.detach() for x in inputs]
    torch.library.opcheck(torch.ops.longreach.cauchy_adjoint, (complex_normal(2, 2, 5), *constants))

    def function(v: Tensor, w: Tensor) -> Tensor:
        return with_backend("native", v, inputs[1], w)[0]

    assert torch.autograd.gradcheck(function, (inputs[0], inputs[2]), rtol=1e-5, atol=1e-7)
    assert torch.autograd.gradgradcheck(function, (inputs[0], inputs[2]))


def test_threads_and_neighbours_change_no_bit() -> None:
    inputs, grad = arguments(5, 3, 4, 1100, torch.complex128), complex_normal(5, 3, 1100)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(with_backend("native", *inputs, grad))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)
    v, z, w = (x.detach().clone() for x in inputs)
    v[1, 2, 0] = torch.nan
    (r,) = with_backend("native", v, z, w)
    assert r[1, 2].isnan().all()
    assert r.isnan().any(-1).sum() == 1


def test_refuses_what_it_has_no_kernel_for() -> None:
    v, z, w = arguments(1, 2, 3, 4, torch.complex128)
    refusal = ops.cauchy.refusal
    assert "no gradient for the points" in str(refusal("native", v, z.clone().requires_grad_(), w))
    assert "one complex dtype" in str(refusal("native", v, z.to(torch.complex64), w))
    assert "runs on the CPU" in str(refusal("native", *(x.to("meta") for x in (v, z, w))))
    assert ops.cauchy.choose(v, z, w) == "native"
