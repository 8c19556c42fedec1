"""Sums of complex exponentials: how a diagonal state-space model becomes a filter, and a chunk becomes a state.

    vandermonde           y_l = 2 Re sum_n c_n z_n^l                  modes -> sequence      (S4D, DSS, S5, H3)
    vandermonde_adjoint   s_n = sum_l z_n^(L-1-l) u_l                 sequence -> modes, newest input last

Both are products with the Vandermonde matrix of Gu et al. (https://arxiv.org/abs/2206.11893), which is never formed:
z^(q r + s) = z^(q r) z^s turns them into products of matrices with about sqrt(L) columns.

Ratios are given as log z, and powers are computed in float64 whatever the dtype is: in float32 the phase of a late
power would be all rounding.  One of each conjugate pair is given; a real mode with coefficient c counts with c / 2.
Modes that all channels share are given once, as a single row of ratios.

Axes: d channels, n modes per channel, l length; `...` any leading batch axes.
"""

import math
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn.functional import pad

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.native import refusal
from longreach.ops.triton import available
from longreach.ops.triton.vandermonde import DTYPES as TRITON_DTYPES
from longreach.ops.triton.vandermonde import triton_adjoint, triton_sums
from longreach.ops.vandermonde_native import DTYPES, native_adjoint, native_sums


def _exponentials(log_ratio: Tensor, length: int) -> Tensor:
    """z^0 .. z^(length-1), (d, n, length), from the definition."""
    exponents = torch.arange(length, device=log_ratio.device, dtype=torch.float64)
    return torch.exp(log_ratio.to(torch.complex128)[..., None] * exponents).to(log_ratio.dtype)


def _check(modes: tuple[int, ...], log_ratio: Tensor, length: int) -> None:
    if length < 1 or log_ratio.shape[0] not in (1, modes[0]) or modes[1:] != log_ratio.shape[1 : len(modes)]:
        raise InputError(
            f"vandermonde: (channels, modes) are {modes} in one argument and {tuple(log_ratio.shape)} in log_ratio; "
            f"they must be the same (or one row for all channels), and the length, {length}, at least 1"
        )


@op
def vandermonde(
    coefficient: Complex[Tensor, "... d n"], log_ratio: Complex[Tensor, "#d n"], length: int
) -> Float[Tensor, "... d {length}"]:
    """y_l = 2 Re sum_n c_n z_n^l for l < `length`.  The definition takes O(d n l) time and memory."""
    _check(tuple(coefficient.shape[-2:]), log_ratio, length)
    return 2 * torch.einsum("...dn,dnl->...dl", coefficient, _exponentials(log_ratio, length)).real


@vandermonde.backend("blocked")
def _blocked(coefficient: Tensor, log_ratio: Tensor, length: int) -> Tensor:
    """One real matrix product per channel, and O(d n sqrt(l)) memory besides the output."""
    _check(tuple(coefficient.shape[-2:]), log_ratio, length)
    coarse, fine = _two_levels(length)
    left = 2 * coefficient[..., None] * _Powers.apply(log_ratio, coarse, fine)  # (..., d, n, coarse)
    right = _Powers.apply(log_ratio, fine, 1)  # (d, n, fine)
    left, right = torch.cat([left.real, -left.imag], dim=-2), torch.cat([right.real, right.imag], dim=-2)
    with torch.autocast(left.device.type, enabled=False):
        return (left.mT @ right).flatten(-2)[..., :length]


@op
def vandermonde_adjoint(u: Float[Tensor, "... d l"], log_ratio: Complex[Tensor, "#d n"]) -> Complex[Tensor, "... d n"]:
    """s_n = sum_l z_n^(L-1-l) u_l, the state that zero reaches after reading `u`, in the dtype of `log_ratio`."""
    _check(tuple(u.shape[-2:-1]), log_ratio, u.shape[-1])
    powers = _exponentials(log_ratio, u.shape[-1]).flip(-1)
    return torch.einsum("...dl,dnl->...dn", u.to(powers.dtype), powers)


@vandermonde_adjoint.backend("blocked")
def _blocked_adjoint(u: Tensor, log_ratio: Tensor) -> Tensor:
    """The transpose of the blocked `vandermonde`: first sum inside each block, then over the blocks."""
    length = u.shape[-1]
    _check(tuple(u.shape[-2:-1]), log_ratio, length)
    coarse, fine = _two_levels(length)
    newest_first = pad(u.to(log_ratio.real.dtype).flip(-1), (0, coarse * fine - length)).unflatten(-1, (coarse, fine))
    powers = _Powers.apply(log_ratio, fine, 1)  # (d, n, fine)
    with torch.autocast(powers.device.type, enabled=False):
        inner = newest_first @ torch.cat([powers.real, powers.imag], dim=-2).mT  # (..., d, coarse, 2n)
    inner = torch.complex(*inner.chunk(2, dim=-1))
    return (inner * _Powers.apply(log_ratio, coarse, fine).mT).sum(-2)


def _native_refuses(values: Tensor, log_ratio: Tensor, length: int | None = None) -> str | None:
    return refusal(values.device, log_ratio.dtype, DTYPES)


@vandermonde.backend("native", refuses=_native_refuses)
def _native(coefficient: Tensor, log_ratio: Tensor, length: int) -> Tensor:
    """The blocked products in compiled code, with the tables of a channel in the cache."""
    _check(tuple(coefficient.shape[-2:]), log_ratio, length)
    return native_sums(coefficient.to(log_ratio.dtype), log_ratio, length)


@vandermonde_adjoint.backend("native", refuses=_native_refuses)
def _native_adjoint(u: Tensor, log_ratio: Tensor) -> Tensor:
    """Its transpose."""
    _check(tuple(u.shape[-2:-1]), log_ratio, u.shape[-1])
    return native_adjoint(u.to(log_ratio.real.dtype), log_ratio)


def _triton_refuses(values: Tensor, log_ratio: Tensor, length: int | None = None) -> str | None:
    return available.refusal(values.device, log_ratio.dtype, TRITON_DTYPES)


def _triton_yields(values: Tensor, log_ratio: Tensor, length: int | None = None) -> str | None:
    return available.interpretation(values.device)


@vandermonde.backend("triton", refuses=_triton_refuses, yields=_triton_yields)
def _triton(coefficient: Tensor, log_ratio: Tensor, length: int) -> Tensor:
    """Products of small tables of powers on tensor cores, in tiles that nobody else sees."""
    _check(tuple(coefficient.shape[-2:]), log_ratio, length)
    return triton_sums(coefficient.to(log_ratio.dtype), log_ratio, length)


@vandermonde_adjoint.backend("triton", refuses=_triton_refuses, yields=_triton_yields)
def _triton_adjoint(u: Tensor, log_ratio: Tensor) -> Tensor:
    """Its transpose."""
    _check(tuple(u.shape[-2:-1]), log_ratio, u.shape[-1])
    return triton_adjoint(u.to(log_ratio.real.dtype), log_ratio)


def _two_levels(length: int) -> tuple[int, int]:
    """Cut `length` positions into `coarse` blocks of `fine`, both near sqrt(length)."""
    fine = math.isqrt(length - 1) + 1
    return -(-length // fine), fine


class _Powers(torch.autograd.Function):
    """z^0, z^stride, .. z^((count-1) stride) on a new last axis, each from the one half as far by a multiplication."""

    @staticmethod
    def forward(log_ratio: Tensor, count: int, stride: int) -> Tensor:
        wide = log_ratio.to(torch.complex128)
        powers = torch.ones_like(wide)[..., None]
        while (known := powers.shape[-1]) < count:
            next_power = torch.exp(wide * (known * stride))[..., None]
            powers = torch.cat([powers, powers[..., : count - known] * next_power], dim=-1)
        return powers.to(log_ratio.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, _, ctx.stride = inputs
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """d z^k / d log z = k z^k."""
        (grad,), (powers,) = grad_outputs, ctx.saved_tensors
        exponents = ctx.stride * torch.arange(powers.shape[-1], device=grad.device, dtype=grad.real.dtype)
        return (grad * powers.conj() * exponents).sum(-1), None, None
