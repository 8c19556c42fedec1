"""Diagonal linear systems that are carried from chunk to chunk: the recurrent view of S4D and of all its relatives.

    s_t = abar s_{t-1} + bbar u_t,     y_t = 2 Re sum_n C_n s_t,n         one of each conjugate pair of modes is given

    modal_kernel    y is a convolution of u with     K_l = 2 Re sum_n C_n bbar_n abar_n^l
    modal_step      one position
    modal_prefill   a chunk: the convolution, plus what the state gives when it is left alone

Where the published system has no conjugate pairs and y = Re sum_n C_n s_n, give C / 2.  (S4D,
https://arxiv.org/abs/2206.11893, appendix; DSS, GSS, H3, Mega's moving average and StripedHyena are of the same form.)

Axes: b batch, d channels, n modes per channel, l length.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Complex, Float, Int, Num
from torch import Tensor

from longreach.ops.backend import op
from longreach.ops.long_conv import long_conv
from longreach.ops.native import refusal
from longreach.ops.steps_native import DTYPES, PARTS, native_modal_step, step_yields
from longreach.ops.vandermonde import vandermonde, vandermonde_adjoint


class ModalSystem(NamedTuple):
    """A sampled system; log abar rather than abar, because its multiples give the powers of abar accurately.

    Channels that share their modes share one row of log abar.
    """

    log_abar: Complex[Tensor, "#d n"]
    bbar: Complex[Tensor, "#d n"]
    C: Complex[Tensor, "d n"]

    @property
    def recurrence(self) -> "ModalRecurrence":
        """The system as steps need it, worth keeping where weights are constant (longreach.mixers.constant_weights)."""
        return ModalRecurrence(self.abar, self.bbar, self.C)

    @property
    def abar(self) -> Complex[Tensor, "#d n"]:
        """The exponential of log abar, from its parts: torch takes six times as long for a complex one on a CPU."""
        return torch.polar(self.log_abar.real.exp(), self.log_abar.imag)


class ModalRecurrence(NamedTuple):
    """A sampled system for modal_step."""

    abar: Complex[Tensor, "#d n"]
    bbar: Complex[Tensor, "#d n"]
    C: Complex[Tensor, "d n"]


def modal_kernel(system: ModalSystem, length: int) -> Float[Tensor, "d {length}"]:
    """The first `length` taps of the impulse response, O(d n length) time, O(d n sqrt(length)) memory."""
    return vandermonde(system.C * system.bbar, system.log_abar, length)


@op
def modal_step(
    u: Float[Tensor, "b d"],
    modes: Num[Tensor, "b d n"],
    abar: Num[Tensor, "*#b #d n"],
    bbar: Num[Tensor, "*#b #d n"],
    C: Num[Tensor, "d n"],
    skip: Float[Tensor, " d"] | None = None,
    left: Num[Tensor, "r d n"] | None = None,
    right: Num[Tensor, "r d n"] | None = None,
) -> tuple[Float[Tensor, "b d"], Num[Tensor, "b d n"]]:
    """One position, O(b d n): the output in the precision of the modes, and the modes after it.

    `skip` is the direct path past the modes.  `left` and `right` come together: abar s - sum_r left_r 2 Re(right_r . s)
    in place of abar s (longreach.ops.dplr).  abar and bbar may be different in every row of the batch.  Modes may be
    real as well, all of them.
    """
    after = abar * modes + bbar * u[..., None]
    if left is not None and right is not None:
        seen = 2 * torch.einsum("rdn,bdn->brd", right, modes).real
        after = after - torch.einsum("rdn,brd->bdn", left, seen.to(modes.dtype))
    y = 2 * (C * after).real.sum(-1)
    return (y if skip is None else y + skip * u), after


def _native_refuses(
    u: Tensor,
    modes: Tensor,
    abar: Tensor,
    bbar: Tensor,
    C: Tensor,
    skip: Tensor | None = None,
    left: Tensor | None = None,
    right: Tensor | None = None,
) -> str | None:
    dtype, real = modes.dtype, PARTS.get(modes.dtype, modes.dtype)
    mixed = any(part is not None and part.dtype != dtype for part in (abar, bbar, C, left, right))
    if mixed or u.dtype != real or (skip is not None and skip.dtype != real):
        return f"needs tensors of the precision of the modes, {dtype}"
    return refusal(modes.device, dtype, DTYPES)


@modal_step.backend("native", refuses=_native_refuses, yields=step_yields)
def _native(
    u: Tensor,
    modes: Tensor,
    abar: Tensor,
    bbar: Tensor,
    C: Tensor,
    skip: Tensor | None = None,
    left: Tensor | None = None,
    right: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """In compiled code, without temporary tensors."""
    return native_modal_step(u, modes, abar, bbar, C, skip, left, right)


def modal_prefill(
    u: Float[Tensor, "b d l"],
    modes: Complex[Tensor, "b d n"],
    system: ModalSystem,
    mask: Bool[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b d l"], Complex[Tensor, "b d n"]]:
    """A chunk, O(b d (l log l + n l)): outputs and modes as steps over the positions where `mask` is True give them.

    What `u` holds where `mask` is False does not matter, and the output there is undefined.
    """
    if mask is None:
        return _prefill(u, modes, system, None)
    order = padding_first(mask)
    u = u.masked_fill(~mask[:, None], 0).gather(-1, order[:, None].expand_as(u))
    y, modes = _prefill(u, modes, system, (~mask).sum(1)[:, None])
    return y.gather(-1, order.argsort(dim=1)[:, None].expand_as(y)), modes


def padding_first(mask: Bool[Tensor, "b l"]) -> Int[Tensor, "b l"]:
    """The order of positions that brings those where `mask` is False to the front and changes nothing else."""
    return mask.to(torch.uint8).argsort(dim=1, stable=True)


def _prefill(u: Tensor, modes: Tensor, system: ModalSystem, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """Prefill with the first `padding` (b, 1) positions of each row, which hold zeros, left out of time."""
    length, log_abar = u.shape[-1], system.log_abar
    decay = vandermonde(system.C * system.abar * modes, log_abar, length)  # (b, d, l)
    elapsed = torch.full((1, 1), length, device=u.device) if padding is None else length - padding
    if padding is not None:
        since = (torch.arange(length, device=u.device) - padding).clamp(min=0)
        decay = decay.gather(-1, since[:, None].expand_as(decay))
    abar_elapsed = (log_abar.to(torch.complex128) * elapsed[..., None]).exp().to(log_abar.dtype)  # (b or 1, d, n)
    modes = abar_elapsed * modes + system.bbar * vandermonde_adjoint(u.to(decay.dtype), log_abar)
    return long_conv(u, modal_kernel(system, length)) + decay.to(u.dtype), modes
