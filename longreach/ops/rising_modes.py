"""Modes that grow with the lag, up to a horizon: what a structured softmax makes of an eigenvalue with Re > 0.

    y_t = Re sum_n C_n sum_{j <= t} z_n^(h - 1 - t + j) u_j        |z| < 1, h the horizon, t < h

The tap at lag k is C z^(h-1-k), largest at the far end (DSS, https://arxiv.org/abs/2203.14343).  As a recurrence with
ratio 1/z it would overflow and magnify every rounding; counted from the first position nothing grows:

    s_t = s_{t-1} + z^t u_t,     y_t = Re sum_n C_n z_n^(h-1-t) s_t,n

Axes: b batch, d channels, n modes per channel, l length; `...` any leading axes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from longreach.ops.long_conv import long_conv
from longreach.ops.modal import padding_first
from longreach.ops.vandermonde import vandermonde, vandermonde_adjoint


class RisingModes(NamedTuple):
    """log z rather than z, as in ModalSystem; `horizon` is the number of taps."""

    log_ratio: Complex[Tensor, "d n"]
    C: Complex[Tensor, "... d n"]
    horizon: int


def rising_kernel(system: RisingModes, length: int) -> Float[Tensor, "... d {length}"]:
    """The first `length` taps, at most `horizon`; O(d n length) time and O(d n sqrt(length)) memory."""
    far = system.C * _power(system.log_ratio, system.horizon - length)
    return vandermonde(far / 2, system.log_ratio, length).flip(-1)


def rising_step(
    u: Float[Tensor, "b d"], modes: Complex[Tensor, "b d n"], system: RisingModes, position: Int[Tensor, " b"]
) -> tuple[Float[Tensor, "b d"], Complex[Tensor, "b d n"]]:
    """The output at `position` of each row, which is less than the horizon, and the modes after it; O(b d n)."""
    t = position[:, None, None]
    modes = modes + _power(system.log_ratio, t) * u[..., None]
    return (system.C * _power(system.log_ratio, system.horizon - 1 - t) * modes).real.sum(-1), modes


def rising_prefill(
    u: Float[Tensor, "b d l"],
    modes: Complex[Tensor, "b d n"],
    system: RisingModes,
    position: Int[Tensor, " b"],
    mask: Bool[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b d l"], Complex[Tensor, "b d n"]]:
    """A chunk that starts at `position`, O(b d (l log l + n l)): what steps over its real positions give.

    What `u` holds where `mask` is False does not matter, and the output there is undefined.
    """
    length, log_ratio = u.shape[-1], system.log_ratio
    seen = torch.ones_like(u[:, 0], dtype=torch.bool) if mask is None else mask
    u = u.masked_fill(~seen[:, None], 0)
    order = padding_first(seen)
    last = _reorder(u, order)  # the real positions come last, so that no exponent below is negative
    remaining = system.horizon - position - seen.sum(1)
    left = system.C * _power(log_ratio, remaining[:, None, None]) * modes
    y = long_conv(last, rising_kernel(system, length)) + vandermonde(left / 2, log_ratio, length).flip(-1).to(u.dtype)
    newest_first = _reorder(u, padding_first(~seen)).flip(-1)
    read = _power(log_ratio, position[:, None, None]) * vandermonde_adjoint(newest_first, log_ratio)
    return _reorder(y, order.argsort(dim=1)), modes + read


def _power(log_ratio: Tensor, exponent: Tensor | int) -> Tensor:
    """z^exponent, whose phase needs float64 while it is large."""
    return (log_ratio.to(torch.complex128) * exponent).exp().to(log_ratio.dtype)


def _reorder(u: Tensor, order: Tensor) -> Tensor:
    """The positions of `u` (b, d, l) in the order of each row."""
    return u.gather(-1, order[:, None].expand_as(u))
