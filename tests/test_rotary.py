"""Rotary positions: both conventions, relative positions, and angles that are right far out."""

import math

import pytest
import torch
from torch import Tensor

from longreach.errors import InputError
from longreach.ops import rotary

TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}


def by_hand(x: Tensor, position: int, *, base: float, dims: int, interleaved: bool) -> Tensor:
    """One vector, turned pair by pair as complex numbers."""
    y = x.clone()
    for i in range(dims // 2):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + dims // 2)
        turned = complex(x[a], x[b]) * complex(math.cos(position * base ** (-2 * i / dims)), 0) + 1j * complex(
            x[a], x[b]
        ) * math.sin(position * base ** (-2 * i / dims))
        y[a], y[b] = turned.real, turned.imag
    return y


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("base", "dims"), [(10_000.0, 8), (100.0, 4), (500_000.0, 2)])
def test_pairs_turn_by_their_angles(base: float, dims: int, interleaved: bool) -> None:
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    position = torch.tensor([[0, 1, 2, 3], [9, 100, 5, 1]])
    y = rotary(x, position, base=base, dims=dims, interleaved=interleaved)
    for row, head, t in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist():
        expected = by_hand(x[row, head, t], int(position[row, t]), base=base, dims=dims, interleaved=interleaved)
        torch.testing.assert_close(y[row, head, t], expected, **TOLERANCE)


def test_positions_may_be_shared_by_all_rows() -> None:
    x, position = torch.randn(2, 3, 4, 6, dtype=torch.float64), torch.arange(4) + 5
    torch.testing.assert_close(rotary(x, position), rotary(x, position.expand(2, 4)), rtol=0, atol=0)


@pytest.mark.parametrize("interleaved", [False, True])
def test_products_depend_on_the_distance_alone(interleaved: bool) -> None:
    query, key = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64).unbind()

    def product(i: int, j: int) -> Tensor:
        turned = (rotary(x, torch.tensor([p]), interleaved=interleaved) for x, p in ((query, i), (key, j)))
        return math.prod(turned).sum()

    torch.testing.assert_close(product(20, 7), product(1013, 1000), **TOLERANCE)
    assert not torch.isclose(product(20, 7), product(20, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_angles_are_exact_a_million_positions_out(dtype: torch.dtype) -> None:
    """Only the rounding of the result is left; an angle in float32 would be off by 0.03, in bfloat16 by anything."""
    x, position = torch.randn(1, 1, 4, 64).to(dtype), torch.tensor([0, 17, 999_999, 2**24 + 1])
    exact = rotary(x.double(), position)
    y = rotary(x, position)
    assert y.dtype == dtype
    assert (y.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.abs().max()


def test_gradient() -> None:
    x = torch.randn(2, 2, 3, 6, dtype=torch.float64, requires_grad=True)
    for interleaved in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, flag=interleaved: rotary(x, torch.arange(3), dims=4, interleaved=flag), x, fast_mode=True
        )


@pytest.mark.parametrize("dims", [3, 0, 8])
def test_widths_that_hold_no_pairs_are_refused(dims: int) -> None:
    with pytest.raises(InputError, match=f"dims={dims} must be even"):
        rotary(torch.zeros(1, 1, 1, 6), torch.arange(1), dims=dims)
