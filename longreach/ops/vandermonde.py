"""Sums of complex exponentials: how a diagonal state-space model becomes a filter, and a chunk becomes a state.

    vandermonde           y_l = 2 Re sum_n c_n z_n^l                  modes -> sequence
    vandermonde_adjoint   s_n = sum_l z_n^(L-1-l) u_l                 sequence -> modes, newest input last

Ratios are given as log z, so that z^l = exp(l log z) stays accurate and can decay to zero without underflow warnings.

Axes: d channels, n modes per channel, l length; `...` any leading batch axes.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn.functional import pad

from longreach.ops.backend import op


def _powers(log_ratio: Complex[Tensor, "d n"], count: int, stride: int = 1) -> Complex[Tensor, "d n {count}"]:
    """z^0, z^stride, ...  in float64 whatever the input is: in float32 the phase of a late power would be all rounding."""
    exponents = torch.arange(0, count * stride, stride, device=log_ratio.device, dtype=torch.float64)
    exponent = log_ratio.to(torch.complex128)[..., None] * exponents
    return torch.polar(exponent.real.exp(), exponent.imag).to(log_ratio.dtype)


def _two_levels(length: int) -> tuple[int, int]:
    """Split l = coarse * fine + rest with both factors near sqrt(length)."""
    fine = math.isqrt(length - 1) + 1
    return -(-length // fine), fine


@op
def vandermonde(
    coefficient: Complex[Tensor, "... d n"], log_ratio: Complex[Tensor, "d n"], length: int
) -> Float[Tensor, "... d {length}"]:
    """y_l = 2 Re sum_n c_n z_n^l for l < `length`."""
    return 2 * torch.einsum("...dn,dnl->...dl", coefficient, _powers(log_ratio, length)).real


@vandermonde.backend("blocked")
def _blocked(coefficient: Tensor, log_ratio: Tensor, length: int) -> Tensor:
    """z^(q r + s) = z^(q r) z^s: one real matrix product, and O(n sqrt(l)) memory where the definition takes O(n l)."""
    coarse, fine = _two_levels(length)
    left = coefficient[..., None] * _powers(log_ratio, coarse, stride=fine)  # (..., d, n, coarse)
    right = _powers(log_ratio, fine)  # (d, n, fine)
    with torch.autocast(right.device.type, enabled=False):
        y = left.real.mT @ right.real - left.imag.mT @ right.imag  # (..., d, coarse, fine)
    return 2 * y.flatten(-2)[..., :length]


@op
def vandermonde_adjoint(u: Float[Tensor, "... d l"], log_ratio: Complex[Tensor, "d n"]) -> Complex[Tensor, "... d n"]:
    """s_n = sum_l z_n^(L-1-l) u_l, the state that a zero state reaches after reading `u`."""
    powers = _powers(log_ratio, u.shape[-1]).flip(-1)
    return torch.einsum("...dl,dnl->...dn", u.to(powers.dtype), powers)


@vandermonde_adjoint.backend("blocked")
def _blocked_adjoint(u: Tensor, log_ratio: Tensor) -> Tensor:
    """The transpose of `_blocked`: first sum inside each block, then over the blocks."""
    length = u.shape[-1]
    coarse, fine = _two_levels(length)
    newest_first = pad(u.flip(-1), (0, coarse * fine - length)).unflatten(-1, (coarse, fine))
    powers = _powers(log_ratio, fine)
    with torch.autocast(powers.device.type, enabled=False):
        inner = torch.complex(newest_first @ powers.real.mT, newest_first @ powers.imag.mT)  # (..., d, coarse, n)
    return (inner * _powers(log_ratio, coarse, stride=fine).mT).sum(-2)
