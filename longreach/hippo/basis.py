"""The functions whose coefficients are the state of a HiPPO system, to see what it remembers.

The state x of a measure at time t stands for the past  f(age) = u(t - age) ~ sum_n x_n g_n(age):

    legs      g_n = sqrt(2n+1) P_n(2 exp(-age) - 1)             scaled: sqrt(2n+1) P_n(2s - 1), from 0, the start, to 1
    legt      g_n = sqrt(2n+1) P_n(1 - age), age <= 2           lmu: P_n(2 age - 1), age <= 1
    lagt      g_n = exp(-age/2) L_n(age) / beta                 tlagt: exp((beta-1) age/2) L_n(age) / beta
    glagt     g_n = age^alpha exp((beta-1) age/2) L_n^alpha(age) / (G_n scale)
    fourier   1, sqrt(2) cos(pi j age), sqrt(2) sin(pi j age), age <= 2;  fourier2: 2 pi j, age <= 1

with Legendre polynomials P_n and Laguerre polynomials L_n (HiPPO, https://arxiv.org/abs/2008.07669, appendix D; the
Fourier basis, https://arxiv.org/abs/2206.12037).  The other measures have no basis of this kind.

Axes: k points, n functions.
"""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from longreach.errors import InputError
from longreach.hippo.measures import Laguerre, Measure

WINDOWS: dict[Measure, float] = {"legt": 2.0, "lmu": 1.0, "fourier": 2.0, "fourier2": 1.0}
"""The greatest age that a measure with a window remembers."""


def basis(
    measure: Measure,
    size: int,
    age: Float[Tensor, " k"],
    laguerre: Laguerre = Laguerre(),  # noqa: B008 (immutable)
) -> Float64[Tensor, "k n"]:
    """g_n(age): the past is `basis @ state`.  Ages are in units of the continuous time of the measure, dt a sample.

    Raises InputError for an age that the measure does not remember, and for a measure without such a basis.
    """
    age = age.double()
    oldest = WINDOWS.get(measure, math.inf)
    if age.numel() and (age.min() < 0 or age.max() > oldest):
        raise InputError(f"{measure} remembers ages from 0 to {oldest}, not {age.min():.4g} to {age.max():.4g}")
    if measure == "legs":
        return scaled_basis(size, (-age).exp())
    if measure == "legt":
        return legendre(size, 1 - age) * _norms(size)
    if measure == "lmu":
        return legendre(size, 2 * age - 1)
    if measure in ("lagt", "tlagt", "glagt"):
        return _laguerre_basis(measure, size, age, laguerre)
    if measure in ("fourier", "fourier2"):
        n = torch.arange(size)
        angle = 2 * math.pi / oldest * (n // 2) * age[:, None]
        waves = math.sqrt(2) * torch.where(n % 2 == 0, angle.cos(), angle.sin())
        return torch.where(n == 0, torch.ones_like(waves), waves)
    raise InputError(
        f"{measure} has no basis in closed form; legs, legt, lmu, the Laguerre measures, fourier and fourier2 have"
    )


def scaled_basis(size: int, position: Float[Tensor, " k"]) -> Float64[Tensor, "k n"]:
    """The basis of scaled LegS: position 0 is the start of the input and 1 is now."""
    return legendre(size, 2 * position.double() - 1) * _norms(size)


def _norms(size: int) -> Tensor:
    return (2 * torch.arange(size, dtype=torch.float64) + 1).sqrt()


def legendre(size: int, x: Float64[Tensor, " k"]) -> Float64[Tensor, "k n"]:
    """The Legendre polynomials P_0 .. P_{size-1} by their recurrence, stable for |x| <= 1."""
    values = [torch.ones_like(x), x]
    for n in range(1, size - 1):
        values.append(((2 * n + 1) * x * values[n] - n * values[n - 1]) / (n + 1))
    return torch.stack(values[:size], dim=1)


def laguerre_polynomials(size: int, alpha: float, x: Float64[Tensor, " k"]) -> Float64[Tensor, "k n"]:
    """The generalised Laguerre polynomials of order alpha by their recurrence."""
    values = [torch.ones_like(x), 1 + alpha - x]
    for n in range(1, size - 1):
        values.append(((2 * n + 1 + alpha - x) * values[n] - (n + alpha) * values[n - 1]) / (n + 1))
    return torch.stack(values[:size], dim=1)


def _laguerre_basis(measure: Measure, size: int, age: Tensor, laguerre: Laguerre) -> Tensor:
    beta, alpha = laguerre.tilt(measure), laguerre.alpha
    if measure == "lagt":
        return (-age / 2).exp()[:, None] * laguerre_polynomials(size, 0.0, age) / beta
    tilt = ((beta - 1) / 2 * age).exp()[:, None]
    if measure == "tlagt":
        return tilt * laguerre_polynomials(size, 0.0, age) / beta
    n = torch.arange(size, dtype=torch.float64)
    norm = ((torch.lgamma(n + alpha + 1) - torch.lgamma(n + 1)) / 2).exp()
    scale = math.exp(-math.lgamma(1 - alpha) / 2) * beta ** ((1 - alpha) / 2)
    return age[:, None] ** alpha * tilt * laguerre_polynomials(size, alpha, age) / (norm * scale)
