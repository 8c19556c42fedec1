"""Measures of the past, and the linear systems whose state is the best approximation of the past under them.

HiPPO (Gu, Dao, Ermon, Rudra & Re 2020, https://arxiv.org/abs/2008.07669) projects the input seen so far on N
orthogonal functions; the coefficients follow x'(t) = A x(t) + B u(t).  With n, k from 0, p_n = sqrt(2n+1):

    legs     Legendre polynomials; exponential decay as a time-invariant system, all of the past as x' = (A x + B u) / t
             A_nk = -p_n p_k below the diagonal, -(n+1) on it;  B_n = p_n
    legt     Legendre polynomials on a window of length 2
             A_nk = -p_n p_k / 2 on and below the diagonal, times (-1)^(n-k) above it;  B_n = p_n / 2
    lmu      the same on a window of length 1, not normalised (Voelker, Kajic & Eliasmith 2019, NeurIPS)
             A_nk = (2n+1) (-1)^(n-k+1) on and below the diagonal, -(2n+1) above it;  B_n = (2n+1) (-1)^n
    lagt     Laguerre functions:  A = I/2 - T, T ones on and below the diagonal;  B_n = beta
    tlagt    tilted Laguerre polynomials:  A = (1 - beta) I/2 - T;  B_n = beta
    glagt    generalised Laguerre polynomials of order alpha, tilted by beta, normalised
             A = G^-1 ((1 - beta) I/2 - T) G;  B_n = G_n^-1 binom(n+alpha, n) Gamma(1-alpha)^(-1/2) beta^((1-alpha)/2)
             G_n^2 = Gamma(n+alpha+1) / n!

and, from https://arxiv.org/abs/2206.12037, with F turning the pair (2j, 2j+1) with frequency pi j and the vector
E_0 = 1, E_even = sqrt(2), E_odd = 0:

    fourier          A = F - E E^T,      B = E      sines and cosines on a window of length 2
    fourier2         A = 2F - 2E E^T,    B = 2E     on a window of length 1
    fourier_decay    A = F - E E^T / 2,  B = E / 2  each window is a third of the one before
    fourier_diag     A = 2F - I/2,       B = E      exponential decay, normal
    legsd            A of legs + E E^T / 2,  B = E / 2,  E the B of legs: its normal part

Except for lmu, and for glagt with alpha != 0, A is normal after a correction of low rank:  A + P^T P = c I + (a
skew-symmetric matrix).

Axes: n, k states, r rank.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from longreach.errors import InputError

Measure = Literal[
    "legs", "legt", "lmu", "lagt", "tlagt", "glagt", "fourier", "fourier2", "fourier_decay", "fourier_diag", "legsd"
]
System = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Laguerre:
    """The parameters of the Laguerre measures.

    Attributes:
        alpha: order of the polynomials of glagt, between -1 and 1.
        beta: tilt of tlagt and glagt, and scale of lagt; positive.  None is 0.01 for glagt and 1 for the others.
    """

    alpha: float = 0.0
    beta: float | None = None

    def tilt(self, measure: Measure) -> float:
        """beta for this measure.  Raises InputError if alpha or beta is out of range."""
        beta = self.beta if self.beta is not None else 0.01 if measure == "glagt" else 1.0
        if not -1 < self.alpha < 1 or beta <= 0:
            raise InputError(f"alpha={self.alpha} must lie between -1 and 1, and beta={beta} must be positive")
        return beta


def transition(
    measure: Measure,
    size: int,
    laguerre: Laguerre = Laguerre(),
) -> tuple[Float64[Tensor, "n n"], Float64[Tensor, " n"]]:
    """The matrices A and B of a measure for `size` states, O(size^2).  `laguerre` matters to lagt, tlagt and glagt."""
    if size < 1:
        raise InputError(f"{measure} with {size} states: it needs at least one")
    if measure in ("lagt", "tlagt", "glagt"):
        return _laguerre(measure, size, laguerre)
    return _TRANSITIONS[measure](size)


def low_rank(
    measure: Measure,
    size: int,
    laguerre: Laguerre = Laguerre(),
) -> Float64[Tensor, "r n"]:
    """The rows P for which A + P^T P is normal: two for legt, none for fourier_diag and legsd, one for the others.

    Raises InputError for lmu, and for glagt with alpha != 0, of which no such form is known.
    """
    n = torch.arange(size, dtype=torch.float64)
    if measure == "lmu" or (measure == "glagt" and laguerre.alpha != 0):
        raise InputError(f"{measure} has no normal-plus-low-rank form; legt is the normalised lmu, lagt the glagt of 0")
    if measure == "legt":
        p = (n + 0.5).sqrt()
        return torch.stack([p * (n % 2), p * (1 - n % 2)])
    if measure in ("fourier_diag", "legsd"):
        return n.new_zeros(0, size)
    if measure == "legs":
        return (n + 0.5).sqrt()[None]
    if measure.startswith("fourier"):
        scale = {"fourier": 1.0, "fourier2": 2.0, "fourier_decay": 0.5}[measure]
        return math.sqrt(scale) * _fourier_input(size)[None]
    return torch.full((1, size), math.sqrt(0.5), dtype=torch.float64)


def _legs(size: int) -> System:
    n = torch.arange(size, dtype=torch.float64)
    B = (2 * n + 1).sqrt()
    return -torch.outer(B, B).tril(-1) - torch.diag(n + 1), B


def _legsd(size: int) -> System:
    A, B = _legs(size)
    return A + torch.outer(B, B) / 2, B / 2


def _signs(size: int) -> Tensor:
    """(-1)^(n-k)."""
    n = torch.arange(size)
    return 1.0 - 2.0 * ((n[:, None] - n) % 2).double()


def _legt(size: int) -> System:
    p = (2 * torch.arange(size, dtype=torch.float64) + 1).sqrt()
    ones = torch.ones(size, size, dtype=torch.float64)
    return -torch.outer(p, p) / 2 * torch.where(ones.tril() > 0, ones, _signs(size)), p / 2


def _lmu(size: int) -> System:
    odd = 2 * torch.arange(size, dtype=torch.float64) + 1
    ones = torch.ones(size, size, dtype=torch.float64)
    return -odd[:, None] * torch.where(ones.tril() > 0, _signs(size), ones), odd * _signs(size)[:, 0]


def _laguerre(measure: Measure, size: int, laguerre: Laguerre) -> System:
    beta = laguerre.tilt(measure)
    ones, unit = torch.ones(size, size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)
    if measure == "lagt":
        return unit / 2 - ones.tril(), beta * ones[0]
    A = (1 - beta) / 2 * unit - ones.tril()
    if measure == "tlagt":
        return A, beta * ones[0]
    alpha, n = laguerre.alpha, torch.arange(size, dtype=torch.float64)
    log_norm = (torch.lgamma(n + alpha + 1) - torch.lgamma(n + 1)) / 2  # log G
    binomial = (2 * log_norm - math.lgamma(alpha + 1)).exp()
    scale = math.exp(-math.lgamma(1 - alpha) / 2) * beta ** ((1 - alpha) / 2)
    return A * (log_norm - log_norm[:, None]).exp(), scale * binomial * (-log_norm).exp()


def _fourier_input(size: int) -> Tensor:
    E = math.sqrt(2) * (torch.arange(size) % 2 == 0).double()
    E[0] = 1.0
    return E


def _rotation(size: int) -> Tensor:
    """F: what turns each even state into the next, and back."""
    n = torch.arange(size - 1, dtype=torch.float64)
    frequency = math.pi * (n // 2) * (n % 2 == 0)
    return torch.diag(frequency, -1) - torch.diag(frequency, 1)


def _fourier(size: int, turn: float, forget: float) -> System:
    E = _fourier_input(size)
    return turn * _rotation(size) - forget * torch.outer(E, E), forget * E


def _fourier_diag(size: int) -> System:
    return 2 * _rotation(size) - torch.eye(size, dtype=torch.float64) / 2, _fourier_input(size)


_TRANSITIONS: dict[Measure, Callable[[int], System]] = {
    "legs": _legs,
    "legsd": _legsd,
    "legt": _legt,
    "lmu": _lmu,
    "fourier": lambda size: _fourier(size, 1.0, 1.0),
    "fourier2": lambda size: _fourier(size, 2.0, 2.0),
    "fourier_decay": lambda size: _fourier(size, 1.0, 0.5),
    "fourier_diag": _fourier_diag,
}
