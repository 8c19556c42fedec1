"""Normal-plus-low-rank form: how S4 makes the matrices of HiPPO cheap (Gu, Goel & Re, https://arxiv.org/abs/2111.00396).

Where A + P^T P is normal, its eigenvectors V are unitary, and in them the system x' = A x + B u is a diagonal one with
a correction of low rank:

    A = V (diag(W) - P P^*) V^*          W = V^* (A + P^T P) V,   P and B in the eigenvectors: V^* P, V^* B

Eigenvectors come in conjugate pairs, of which one each is kept, the one with Im W <= 0.

Axes: n modes (half of the states), r rank, k states.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Complex128, Float64
from torch import Tensor

from longreach.errors import InputError
from longreach.hippo.measures import Laguerre, Measure, low_rank, transition


class NormalForm(NamedTuple):
    """A = V (diag(W) - sum_r P_r P_r^*) V^*, restricted to one of each conjugate pair of eigenvectors."""

    W: Complex128[Tensor, " n"]
    P: Complex128[Tensor, "r n"]
    B: Complex128[Tensor, " n"]
    V: Complex128[Tensor, "k n"]


def normal_form(
    measure: Measure,
    size: int,
    laguerre: Laguerre = Laguerre(),  # noqa: B008 (immutable)
) -> NormalForm:
    """The normal-plus-low-rank form of a measure, O(size^3).  Raises InputError for a measure that has none."""
    A, B = transition(measure, size, laguerre)
    return diagonalise(A, low_rank(measure, size, laguerre), B)


def diagonalise(A: Float64[Tensor, "k k"], P: Float64[Tensor, "r k"], B: Float64[Tensor, " k"]) -> NormalForm:
    """The eigenvectors of A + P^T P = c I + (a skew-symmetric matrix), fastest first; O(k^3).

    The phase of an eigenvector is arbitrary; here its first component that is not 0 is real and positive.  Of the
    frequencies at most one pair may be 0, that of the first two states, as in the Fourier measures.

    Raises InputError if the number of states is odd or A + P^T P is not of this form.
    """
    size = len(A)
    if size < 2 or size % 2:
        raise InputError(f"d_state={size} must be even and positive: modes come in conjugate pairs")
    normal = A + P.mT @ P
    centre = normal.diagonal().mean()
    skew = (normal - normal.mT) / 2
    known = not A.is_meta  # a model that is built for its shapes only has no numbers
    if known and (normal - skew).sub(centre * torch.eye(size)).abs().max() > 1e-5 * A.abs().max():
        raise InputError("A + P^T P must be a multiple of the identity plus a skew-symmetric matrix; choose another P")
    frequency, V = torch.linalg.eigh(-1j * skew)  # Hermitian: accurate, and sorted
    frequency, V = frequency[: size // 2], V[:, : size // 2].clone()
    if known and frequency[-1].abs() <= 1e-9 * frequency[0].abs():
        _split_rest(V)
    first = V.gather(0, (V.abs() > 1e-6).to(torch.uint8).argmax(0, keepdim=True))
    V = V * (first.conj() / first.abs())
    W = torch.complex(centre.expand(size // 2), frequency)
    return NormalForm(W, (V.mH @ P.mT.to(V.dtype)).mT, V.mH @ B.to(V.dtype), V)


def _split_rest(V: Tensor) -> None:
    """Where the frequency 0 occurs twice, its eigenvectors are any; a conjugate pair is made of the states at rest."""
    V[:, -1] = 0
    V[:2, -1] = torch.tensor([1.0, 1.0j], dtype=V.dtype) / math.sqrt(2)
