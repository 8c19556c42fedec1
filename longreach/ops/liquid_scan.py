"""The liquid recurrence, in which the input also moves the transition: the core of Liquid-S4.

    s_t = (abar + bbar u_t) s_{t-1} + bbar u_t          y_t = 2 Re sum_n C_n s_t,n

(Hasani, Lechner, Wang, Chahine, Amini & Rus 2022, https://arxiv.org/abs/2209.12951, equation 9, with elementwise
products.)  Sorted by how many inputs are multiplied with each other, s = z_1 + z_2 + ..., and the sum can end:

    z_1,t = abar z_1,t-1 + bbar u_t          z_p,t = abar z_p,t-1 + bbar u_t z_{p-1},t-1         p = 2 .. o

z_p sums C abar^(...) bbar^p u_i1 .. u_ip over all i1 < .. < ip <= t, the paper's liquid kernel of degree p, in O(l).
Each z_p is as stable as abar is, whatever the input; the full recurrence grows where |abar + bbar u| > 1.

Axes: b batch, d channels, n modes per channel, l length, o number of terms (1 for the full recurrence).
"""

from functools import partial
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.linear_scan import linear_scan
from longreach.ops.modal import ModalRecurrence, ModalSystem, modal_step

CHUNK = 2**20
"""How many modes, over all rows and positions, are held at once: 8 MiB in complex64, of which a scan needs a few."""


def liquid_step(
    u: Float[Tensor, "b d"], modes: Complex[Tensor, "b o d n"], system: ModalRecurrence, *, full: bool
) -> tuple[Float[Tensor, "b d"], Complex[Tensor, "b o d n"]]:
    """One position of the full recurrence, or of its first o terms: the output and the modes after it, O(b o d n)."""
    abar, bbar, C = system
    before = modes.unbind(1)
    y, term = modal_step(u, before[0], abar + bbar * u[..., None] if full else abar, bbar, C)
    after = [term]
    for lower, term in pairwise(before):  # what moves a term is the one below it
        z, term = modal_step(u, term, abar, bbar * lower, C)
        y = y + z
        after.append(term)
    return y, torch.stack(after, dim=1)


@op
def liquid_scan(
    u: Float[Tensor, "b d l"],
    modes: Complex[Tensor, "b o d n"],
    system: ModalSystem,
    *,
    full: bool = False,
    mask: Bool[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b d l"], Complex[Tensor, "b o d n"]]:
    """A chunk: the outputs, in the precision of the modes, and the modes after it; O(b o d n l).

    Where `mask` is False there is no time: what `u` holds there does not matter, and the output there is undefined.
    """
    _check(u, modes, system, full)
    outputs, recurrence = [], system.recurrence
    for t, u_t in enumerate(u.unbind(-1)):
        seen = torch.ones_like(u[:, 0, 0], dtype=torch.bool) if mask is None else mask[:, t]
        y, after = liquid_step(u_t.masked_fill(~seen[:, None], 0), modes, recurrence, full=full)
        modes = torch.where(seen[:, None, None, None], after, modes)
        outputs.append(y)
    return torch.stack(outputs, dim=-1), modes


@liquid_scan.backend("chunked")
def _chunked(
    u: Tensor, modes: Tensor, system: ModalSystem, *, full: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scans over stretches that fit into the cache; between them only their states are kept for the backward pass."""
    _check(u, modes, system, full)
    if mask is not None:
        u = u.masked_fill(~mask[:, None], 0)
    length, width = u.shape[-1], max(16, CHUNK // (u.shape[0] * system.C.numel()))
    outputs = []
    for start in range(0, length, width):
        part = slice(start, start + width)
        stretch = partial(_stretch, full=full, mask=None if mask is None else mask[:, part])
        if length > width and torch.is_grad_enabled():
            y, modes = cast(
                tuple[Tensor, Tensor],
                checkpoint(stretch, u[..., part], modes, *system, use_reentrant=False, preserve_rng_state=False),
            )
        else:
            y, modes = stretch(u[..., part], modes, *system)
        outputs.append(y)
    return torch.cat(outputs, dim=-1), modes


def _stretch(
    u: Tensor, modes: Tensor, log_abar: Tensor, bbar: Tensor, C: Tensor, *, full: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """All positions at once, one scan for each term."""
    drive = (u.mT[..., None] * bbar).flatten(2)  # (b, l, d n)
    ratio = log_abar.exp().flatten().expand_as(drive)
    if mask is not None:
        ratio = ratio.masked_fill(~mask[..., None], 1)
    before = modes.flatten(2)
    term = linear_scan(ratio + drive if full else ratio, drive, before[:, 0])
    total, last = term, [term[:, -1]]
    for p in range(1, modes.shape[1]):
        lower = torch.cat([before[:, p - 1 : p], term[:, :-1]], dim=1)
        term = linear_scan(ratio, drive * lower, before[:, p])
        total = total + term
        last.append(term[:, -1])
    y = 2 * (C.flatten() * total).real.unflatten(-1, C.shape).sum(-1).mT
    return y, torch.stack(last, dim=1).unflatten(-1, C.shape)


def _check(u: Tensor, modes: Tensor, system: ModalSystem, full: bool) -> None:
    expected = (u.shape[0], 1 if full else modes.shape[1], u.shape[1], system.C.shape[-1])
    if modes.shape != expected or 0 in modes.shape or u.shape[-1] == 0:
        raise InputError(
            f"liquid_scan: u is {tuple(u.shape)} and the system has {tuple(system.C.shape)} modes; the modes of the "
            f"state must be (batch, terms, channels, modes) with one term if full={full}; they are {tuple(modes.shape)}"
        )
