"""What the authors' code of Liquid-S4 adds to S4, for comparison with its results only.

The paper's model is longreach.mixers.LiquidS4 (https://arxiv.org/abs/2209.12951).  The published code
(github.com/raminmh/liquid-s4) computes something else: it multiplies inputs at the end of the sequence in reverse
order, so that the output reads the future, and with the values that A, B, C and dt had at the start, which it neither
trains nor saves.  Degree by degree, f is the sequence of products, flipped:

    polyb   y_t += Re(C b_p) f_t,  b_1 = bbar, b_p = b_{p-1} sum_n b_{p-1,n}         no memory
    kb      y   += f * k s^(p-1),  s = sum_n bbar_n, k the linear kernel             in spectra of different lengths

Axes: b batch, l length, d channels, n modes (one of each conjugate pair), r directions, k taps, c combinations of p
positions.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from longreach.errors import InputError
from longreach.hippo import discretise

Contraction = Literal["identity", "tanh", "lecun"]
_CONTRACTIONS: dict[Contraction, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "lecun": lambda x: 1.7159 * torch.tanh(0.666 * x),
}


@dataclass(frozen=True)
class PublishedLiquid:
    """The published options.

    Attributes:
        kernel: which approximation (liquid_kernel).
        degree: highest number of inputs that are multiplied (liquid_degree).
        all_combinations: of the last inputs in lexicographic order (allcombs); otherwise of neighbours.
        contraction: what is applied to the products (lcontract).
    """

    kernel: Literal["polyb", "kb"]
    degree: int = 2
    all_combinations: bool = True
    contraction: Contraction = "identity"


class LiquidStart(NamedTuple):
    """The system as it was before training."""

    A: Complex[Tensor, "d n"]
    B: Complex[Tensor, "d n"]
    C: Complex[Tensor, "r d n"]
    dt: Float[Tensor, " d"]


def published_liquid_term(
    u: Float[Tensor, "b d l"], kernels: Float[Tensor, "r d k"], start: LiquidStart, options: PublishedLiquid
) -> Float[Tensor, "b d l"]:
    """What is added to the output of S4 with these kernels, O(degree b d l log l).

    Raises InputError where there are too few positions for the published choice of combinations.
    """
    _, bbar = discretise("bilinear", start.A, start.B, start.dt[:, None])
    length, taps = u.shape[-1], kernels.shape[-1]
    size = length + taps
    linear = kernels[0]
    if len(kernels) == 2:
        linear = pad(linear, (0, length)) + pad(kernels[1].flip(-1), (length, 0))
    total = 2 * bbar.real.sum(-1, keepdim=True)  # over both of each pair
    products, y = u, torch.zeros_like(u)
    for degree in range(2, options.degree + 1):
        products = _combined(u, degree) if options.all_combinations else products * pad(products[..., :-1], (1, 0))
        flipped = _CONTRACTIONS[options.contraction](products).flip(-1)
        if options.kernel == "polyb":
            bbar = bbar * 2 * bbar.real.sum(-1, keepdim=True)
            for gain, f in zip(2 * (start.C * bbar).real.sum(-1), (flipped, flipped.flip(-1)), strict=False):
                y = y + gain[:, None] * f
        else:
            linear = linear * total
            spectrum = torch.fft.rfft(flipped, n=size) * torch.fft.fft(linear, n=size // 2 + 1)
            y = y + torch.fft.irfft(spectrum, n=size)[..., :length]
    return y


def combinations(length: int, degree: int) -> Int[Tensor, "c p"]:
    """The published choice of `length` combinations of positions: the last ones of the fewest last positions."""
    enough = [count for count in range(2, length) if math.comb(count, degree) >= length]
    last = range(length - enough[0], length) if enough else range(0)
    chosen = list(itertools.combinations(last, degree))[-length:]
    if not chosen:
        raise InputError(f"{length} positions have fewer than {length} combinations of {degree}; read more")
    return torch.tensor(chosen)


def _combined(u: Tensor, degree: int) -> Tensor:
    """The products of the chosen inputs, (b, d, l)."""
    return u[..., combinations(u.shape[-1], degree)].prod(-1)
