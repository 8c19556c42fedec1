"""Where diagonal-plus-low-rank systems start (Gu, Johnson, Timalsina, Rudra & Re, https://arxiv.org/abs/2206.12037).

    x' = (diag(A) - sum_r P_r P_r^*) x + B u

A measure of HiPPO starts as its normal-plus-low-rank form; a diagonal spectrum (longreach.hippo.diagonal) with a random
P.  Several starts share the independent systems evenly, as do the published mixtures hippo (legs, fourier) and all.

Axes: s copies (independent systems), r rank, n modes.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Complex128
from torch import Tensor

from longreach.errors import InputError
from longreach.hippo.diagonal import DiagonalInit, Spectrum, clip_input, diagonal_system
from longreach.hippo.measures import Measure
from longreach.hippo.normal import normal_form

DPLRStart = Literal[
    "legs", "legt", "lagt", "tlagt", "glagt", "fourier", "fourier2", "fourier_decay", "fourier_diag", "legsd",
    "lin", "inv", "inv2", "quad", "real", "rand",
]  # fmt: skip
SPECTRA = ("lin", "inv", "inv2", "quad", "real", "rand")
SPARE = 0.01
"""Standard deviation of the rows of P that a measure has no use for: at 0 their gradient would vanish for ever."""


class DPLRParts(NamedTuple):
    """One of each conjugate pair of modes."""

    A: Complex128[Tensor, "s n"]
    P: Complex128[Tensor, "r s n"]
    B: Complex128[Tensor, "s n"]


def dplr_system(
    starts: Sequence[DPLRStart], d_state: int, rank: int, copies: int, init: DiagonalInit, P_scale: float
) -> DPLRParts:
    """`copies` independent systems of `d_state / 2` modes, an equal part from each start.

    Args:
        starts: measures or spectra.
        d_state: real states of a system, even.
        rank: rows of P; no fewer than the measures need (legt: 2).
        copies: a multiple of the number of starts.
        init: choices about the spectra.
        P_scale: standard deviation of P for the spectra.
    Raises:
        InputError: one of these conditions is not met.
    """
    if not starts or copies % len(starts):
        raise InputError(f"init={list(starts)} needs a number of independent systems that it divides, not {copies}")
    parts = [_single(start, d_state, rank, copies // len(starts), init, P_scale) for start in starts]
    A, P, B = zip(*parts, strict=True)
    return DPLRParts(torch.cat(A), torch.cat(P, dim=1), torch.cat(B))


def _single(start: DPLRStart, d_state: int, rank: int, copies: int, init: DiagonalInit, P_scale: float) -> DPLRParts:
    spare = torch.randn(rank, copies, d_state // 2, dtype=torch.complex128)
    if start in SPECTRA:
        A, B = diagonal_system(cast(Spectrum, start), d_state, copies, init)
        return DPLRParts(A, P_scale * spare, B)
    form = normal_form(cast(Measure, start), d_state)
    if rank < len(form.P):
        raise InputError(f"rank={rank} is too low for init={start!r}, which needs {len(form.P)}")
    P = torch.cat([form.P[:, None].expand(-1, copies, -1), SPARE * spare[len(form.P) :]])
    return DPLRParts(form.W.repeat(copies, 1), P, clip_input(form.B).repeat(copies, 1))
