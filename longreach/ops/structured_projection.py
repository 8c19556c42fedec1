"""The nearest structured matrices of a dense one, from singular value decompositions of its parts.

A Monarch matrix of two factors (longreach.ops.monarch) consists of parts of rank 1, so the best approximation of each
part gives the nearest Monarch matrix (Dao et al. 2022, https://arxiv.org/abs/2204.00595):

    M[(s, l), (k, p)] = second[l, s, k] first[k, l, p]                    of rank 1 over (s, p), for every (l, k)

A butterfly matrix is one between its lower and its upper half of factors, and its blocks are butterfly matrices again:
with the row seen as digits (v, u) and the column as (b, a), where a and u are the lower half,

    M[(v, u), (b, a)] = upper_u[v, b] lower_b[u, a]                       of rank 1 over (v, a), for every (u, b)

A butterfly matrix comes out as itself; of another one, every split is the best there is, and the whole is near the
best, not the best (Zheng, Riccietti, Gribonval 2022, https://arxiv.org/abs/2110.01235).

Axes: d inputs and c outputs; k blocks of p inputs and q outputs, l blocks of r inputs and s outputs; of butterflies k
stacks, n = 2^m entries, h = n / 2 places of a factor.
"""

import torch
from jaxtyping import Inexact
from torch import Tensor

from longreach.errors import InputError


def project_butterfly(matrix: Inexact[Tensor, "k n n"], *, increasing: bool = True) -> Inexact[Tensor, "k 1 m h 2 2"]:
    """The twiddle of a butterfly matrix near each of the k matrices, O(n^2 log n) or so; computed in their dtype."""
    n = matrix.shape[-1]
    if n < 2 or n & (n - 1):
        raise InputError(f"project_butterfly: the matrices are {n} x {n}; the size must be a power of two, at least 2")
    if increasing:
        return _split(matrix)[:, None]
    return _split(matrix.mT).mT.flip(1)[:, None]


def _split(matrix: Tensor) -> Tensor:
    """(k, n, n) -> (k, m, n / 2, 2, 2), strides increasing."""
    k, n = matrix.shape[:2]
    if n == 2:
        return matrix[:, None, None]
    low = 2 ** (n.bit_length() // 2)
    high = n // low
    digits = matrix.unflatten(2, (high, low)).unflatten(1, (high, low))  # (k, v, u, b, a)
    upper, lower = nearest_of_rank(digits.permute(0, 2, 3, 1, 4), 1)  # (k, u, b, v, 1), (k, u, b, 1, a)
    upper, lower = upper.squeeze(-1).mT, lower.squeeze(-2).transpose(1, 2)  # (k, u, v, b), (k, b, u, a)
    lower = _split(lower.flatten(0, 1)).unflatten(0, (k, high))  # (k, b, m_low, low / 2, 2, 2)
    upper = _split(upper.flatten(0, 1)).unflatten(0, (k, low))  # (k, u, m_high, high / 2, 2, 2)
    return torch.cat([lower.transpose(1, 2).flatten(2, 3), upper.movedim(1, 3).flatten(2, 3)], dim=1)


def project_monarch(
    matrix: Inexact[Tensor, "c d"], blocks: tuple[int, int], *, inner: int | None = None
) -> tuple[Inexact[Tensor, "k q p"], Inexact[Tensor, "l s r"]]:
    """The two factors of the nearest Monarch matrix (Frobenius norm) with these numbers of blocks, in its dtype.

    Blocks of the first factor have `inner` outputs, as many as the second has blocks if not given.  Where these are w
    times as many, parts have rank w; where they are fewer, some parts are zero.  O(c d min(p, s)) operations.
    """
    k, l = blocks
    (c, d), q = matrix.shape, l if inner is None else inner
    if min(k, l, q) < 1 or d % k or c % l or k * q % l or -(-q // l) > min(c // l, d // k):
        raise InputError(
            f"project_monarch: a matrix of {c} x {d} has no factors of {k} and {l} blocks and {q} inner outputs; these "
            f"numbers of blocks must divide {d} and {c}, {l} must divide {k * q}, and parts be as large as their rank"
        )
    parts = matrix.unflatten(1, (k, -1)).unflatten(0, (-1, l))  # (s, l, k, p)
    left, right = nearest_of_rank(parts.permute(1, 2, 0, 3), -(-q // l))  # (l, k, s, rank), (l, k, rank, p)
    start, output = torch.arange(k, device=matrix.device)[:, None], torch.arange(q, device=matrix.device)
    place = start * q + output  # of an inner entry, (k, q); block place % l of the second factor reads it
    first = right[place % l, start, output // l]
    second = left.mT[place % l, start, output // l]  # (k, q, s)
    return first, second.flatten(0, 1).unflatten(0, (-1, l)).permute(1, 2, 0)


def nearest_of_rank(
    matrix: Inexact[Tensor, "*k o i"], rank: int
) -> tuple[Inexact[Tensor, "*k o r"], Inexact[Tensor, "*k r i"]]:
    """Two factors whose product is the nearest matrix of this rank; each has the roots of the singular values."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values[..., :rank].sqrt().to(left.dtype)
    return left[..., :rank] * roots[..., None, :], roots[..., None] * right[..., :rank, :]
