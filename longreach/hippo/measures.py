"""Measures of the past, and the linear systems whose state is the best approximation of the past under them.

HiPPO (Gu, Dao, Ermon, Rudra & Re 2020, https://arxiv.org/abs/2008.07669) projects the input seen so far on N
orthogonal functions; the coefficients follow x'(t) = A x(t) + B u(t).  With n, k from 0:

    legs     Legendre polynomials on all of the past, which as a time-invariant system decays exponentially
             A_nk = -sqrt((2n+1)(2k+1)) below the diagonal, -(n+1) on it;  B_n = sqrt(2n+1)
    fourier  sines and cosines on a window of unit length (https://arxiv.org/abs/2206.12037)
             A = F - B B^T, F turns the pair (2j, 2j+1) with frequency pi j;  B_0 = 1, B_even = sqrt(2), B_odd = 0

Neither is normal, but each is after a correction of rank one:  A + P P^T = c I + (a skew-symmetric matrix).

Axes: n, k states.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

Measure = Literal["legs", "fourier"]


def transition(measure: Measure, size: int) -> tuple[Float64[Tensor, "n n"], Float64[Tensor, " n"]]:
    """The matrices A and B of a measure for `size` states, O(size^2)."""
    n = torch.arange(size, dtype=torch.float64)
    if measure == "legs":
        B = (2 * n + 1).sqrt()
        return -torch.outer(B, B).tril(-1) - torch.diag(n + 1), B
    B = math.sqrt(2) * (n % 2 == 0).double()
    B[0] = 1.0
    frequency = math.pi * (n // 2)[:-1] * (n[:-1] % 2 == 0)  # between each even state and the next
    return torch.diag(frequency, -1) - torch.diag(frequency, 1) - torch.outer(B, B), B


def low_rank(measure: Measure, size: int) -> Float64[Tensor, " n"]:
    """The vector P that makes A + P P^T normal."""
    if measure == "legs":
        return (torch.arange(size, dtype=torch.float64) + 0.5).sqrt()
    return transition(measure, size)[1]
