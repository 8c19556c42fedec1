"""From continuous time to samples: s' = A s + B u becomes s_k = abar s_{k-1} + bbar u_k, for diagonal A.

    zoh       the input is held between samples    abar = exp(dt A)                      bbar = (abar - 1) / A  B
    bilinear  the trapezoid rule                   abar = (1 + dt A/2) / (1 - dt A/2)    bbar = dt / (1 - dt A/2)  B

(S4, https://arxiv.org/abs/2111.00396; S4D, https://arxiv.org/abs/2206.11893)
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

Discretisation = Literal["zoh", "bilinear"]


class Sampled(NamedTuple):
    """The sampled system; log abar rather than abar, because its multiples give the powers of abar accurately."""

    log_abar: Complex[Tensor, "..."]
    bbar: Complex[Tensor, "..."]


def discretise(
    rule: Discretisation, A: Complex[Tensor, "..."], B: Complex[Tensor, "..."], dt: Float[Tensor, "..."]
) -> Sampled:
    """Sample every mode with its own time step; the three broadcast against each other."""
    if rule == "zoh":
        log_abar = A * dt
        return Sampled(log_abar, torch.expm1(log_abar) / A * B)
    half = A * dt / 2
    return Sampled(torch.log1p(half) - torch.log1p(-half), dt / (1 - half) * B)
