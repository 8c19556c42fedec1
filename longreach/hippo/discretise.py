"""From continuous time to samples: s' = A s + B u becomes s_k = abar s_{k-1} + bbar u_k.

    zoh       the input is held between samples    abar = exp(dt A)                        bbar = A^-1 (abar - 1) B
    bilinear  the trapezoid rule                   abar = (1 - dt A/2)^-1 (1 + dt A/2)     bbar = dt (1 - dt A/2)^-1 B
    forward   Euler's rule                         abar = 1 + dt A                         bbar = dt B
    backward  Euler's implicit rule                abar = (1 - dt A)^-1                    bbar = dt (1 - dt A)^-1 B

The last three are the generalised bilinear rule with weight 1/2, 0 and 1.  Diagonal systems take the first two, and
diagonal-plus-low-rank ones the bilinear rule, which keeps them what they are.
(HiPPO, https://arxiv.org/abs/2008.07669; S4, https://arxiv.org/abs/2111.00396; S4D, https://arxiv.org/abs/2206.11893)

Axes: n states or modes, d channels, r rank, c outputs, ... any batch axes.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from longreach import ops

Discretisation = Literal["zoh", "bilinear"]
MatrixDiscretisation = Literal["zoh", "bilinear", "forward", "backward"]
_WEIGHTS: dict[MatrixDiscretisation, float] = {"forward": 0.0, "bilinear": 0.5, "backward": 1.0}


class Sampled(NamedTuple):
    """The sampled system; log abar rather than abar, because its multiples give the powers of abar accurately."""

    log_abar: Complex[Tensor, "..."]
    bbar: Complex[Tensor, "..."]


class SampledMatrix(NamedTuple):
    """A sampled system of n states."""

    abar: Float[Tensor, "... n n"]
    bbar: Float[Tensor, "... n"]


def discretise(
    rule: Discretisation, A: Complex[Tensor, "..."], B: Complex[Tensor, "..."], dt: Float[Tensor, "..."]
) -> Sampled:
    """Sample every mode with its own time step; the three broadcast against each other."""
    if rule == "zoh":
        log_abar = A * dt
        return Sampled(log_abar, torch.expm1(log_abar) / A * B)
    half = A * dt / 2
    return Sampled(2 * torch.atanh(half), dt / (1 - half) * B)  # log((1 + h) / (1 - h)), without cancellation


def discretise_matrix(
    rule: MatrixDiscretisation, A: Float[Tensor, "n n"], B: Float[Tensor, " n"], dt: Float[Tensor, "..."]
) -> SampledMatrix:
    """Sample a dense system with every one of the time steps, O(n^3) each; A may be singular."""
    if rule != "zoh":
        return generalised_bilinear(A, B, dt, _WEIGHTS[rule])
    size = len(A)  # exp(dt [[A, B], [0, 0]]) = [[abar, bbar], [0, 1]]
    joint = torch.cat([torch.cat([A, B[:, None]], dim=1), A.new_zeros(1, size + 1)])
    sampled = torch.linalg.matrix_exp(dt[..., None, None] * joint)
    return SampledMatrix(sampled[..., :size, :size], sampled[..., :size, size])


def generalised_bilinear(
    A: Float[Tensor, "n n"], B: Float[Tensor, " n"], dt: Float[Tensor, "..."], weight: float
) -> SampledMatrix:
    """(s_k - s_{k-1}) / dt = A (weight s_k + (1 - weight) s_{k-1}) + B u_k, solved for s_k."""
    dt, unit = dt[..., None, None], torch.eye(len(A), dtype=A.dtype, device=A.device)
    known = torch.cat([unit + (1 - weight) * dt * A, (dt * B).mT], dim=-1)
    solved = torch.linalg.solve(unit - weight * dt * A, known)
    return SampledMatrix(solved[..., :-1], solved[..., -1])


def discretise_dplr(
    A: Complex[Tensor, "d n"],
    P: Complex[Tensor, "r d n"],
    B: Complex[Tensor, "d n"],
    C: Complex[Tensor, "c d n"],
    dt: Float[Tensor, "d #n"],
) -> ops.DPLRSystem:
    """The bilinear rule for the matrix diag(A) - sum_r P_r P_r^*, closed under conjugation; O(d n r^2 + d r^3).

    With L = 2 / dt and D = 1 / (L - A), Woodbury's identity gives (L - A + P P^*)^-1 = D - D P (1 + P^* D P)^-1 P^* D,
    and abar is 2 (L - A + P P^*)^-1 L - 1.  (S4, https://arxiv.org/abs/2111.00396, lemma C.4.)
    """
    D = (dt / 2) / (1 - A * dt / 2)
    loop = 2 * torch.einsum("rdn,dn,sdn->drs", P.conj(), D, P).real
    loop = loop + torch.eye(len(P), dtype=loop.dtype, device=loop.device)
    left = torch.linalg.solve(loop.mT.to(P.dtype), 2 * (D * P).transpose(0, 1)).transpose(0, 1)
    seen = 2 * torch.einsum("rdn,dn,dn->rd", P.conj(), D, B).real
    bbar = 2 * D * B - torch.einsum("rdn,rd->dn", left, seen.to(left.dtype))
    return ops.DPLRSystem((1 + A * dt / 2) / (1 - A * dt / 2), left, P.conj() * D * 2 / dt, bbar, C)
