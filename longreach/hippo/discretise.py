"""From continuous time to samples: s' = A s + B u becomes s_k = abar s_{k-1} + bbar u_k.

    zoh       the input is held between samples    abar = exp(dt A)                        bbar = A^-1 (abar - 1) B
    bilinear  the trapezoid rule                   abar = (1 - dt A/2)^-1 (1 + dt A/2)     bbar = dt (1 - dt A/2)^-1 B
    forward   Euler's rule                         abar = 1 + dt A                         bbar = dt B
    backward  Euler's implicit rule                abar = (1 - dt A)^-1                    bbar = dt (1 - dt A)^-1 B

The last three are the generalised bilinear rule with weight 1/2, 0 and 1.  Diagonal systems take the first two.
(HiPPO, https://arxiv.org/abs/2008.07669; S4, https://arxiv.org/abs/2111.00396; S4D, https://arxiv.org/abs/2206.11893)

Axes: n states, ... any batch axes.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

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
    return Sampled(torch.log1p(half) - torch.log1p(-half), dt / (1 - half) * B)


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
