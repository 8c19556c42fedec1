"""Random features: maps phi whose products phi(q) . phi(k) are near a kernel of q and k, here the softmax kernel.

Of exp(q . k) there are two exact estimates by n Gaussian directions w (Choromanski et al. 2020,
https://arxiv.org/abs/2009.14794; FAVOR+ is the first):

    positive         mean over w of  exp(w . q - |q|^2 / 2) exp(w . k - |k|^2 / 2)
    trigonometric    exp(|q|^2 / 2)  mean over w of cos(w . (q - k))  exp(|k|^2 / 2)

Both are given as `factor * exp(exponent)`, because only differences of exponents are small.  Directions that are
orthogonal in blocks of e vary less than independent ones.

Axes: ... any leading axes, e width of queries and keys, n directions, f features: n, or 2 n trigonometric ones.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Directions = Literal["orthogonal", "orthogonal-unit", "independent"]
"""Orthogonal, of the lengths of Gaussian vectors or of their mean length sqrt(e); or independent Gaussian vectors."""


class Features(NamedTuple):
    """The features factor * exp(exponent)."""

    factor: Float[Tensor, "... #f"]
    exponent: Float[Tensor, "... #f"]
    level: Float[Tensor, "..."]
    """What the exponents of this vector are about: subtract the greatest level from exponents against overflow."""


def random_directions(
    n_directions: int, width: int, kind: Directions, generator: torch.Generator | None = None
) -> Float[Tensor, "{n_directions} {width}"]:
    """Draw directions, in float32 on the CPU."""
    gaussian = torch.randn(n_directions, width, generator=generator)
    if kind == "independent":
        return gaussian
    n_blocks = -(-n_directions // width)
    blocks, triangles = torch.linalg.qr(torch.randn(n_blocks, width, width, generator=generator))
    blocks = blocks * triangles.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # LAPACK's signs are not random
    rows = blocks.mT.flatten(0, 1)[:n_directions]
    return rows * (width**0.5 if kind == "orthogonal-unit" else gaussian.norm(dim=1, keepdim=True))


def positive_features(x: Float[Tensor, "*axes e"], directions: Float[Tensor, "n e"]) -> Features:
    """The positive estimate; its level is the greatest w . x, as in the published code."""
    with torch.autocast(x.device.type, enabled=False):
        projected = x @ directions.mT.to(x.dtype)
        exponent = projected - x.square().sum(-1, keepdim=True) / 2
        return Features(exponent.new_full((1,), directions.shape[0] ** -0.5), exponent, projected.amax(-1))


def trigonometric_features(x: Float[Tensor, "*axes e"], directions: Float[Tensor, "n e"]) -> Features:
    """The trigonometric estimate: cosines, then sines."""
    with torch.autocast(x.device.type, enabled=False):
        angle, level = x @ directions.mT.to(x.dtype), x.square().sum(-1) / 2
        return Features(torch.cat([angle.cos(), angle.sin()], -1) / directions.shape[0] ** 0.5, level[..., None], level)
