"""Butterfly matrices: products of log2 n sparse factors, O(n log n) operations for a whole matrix (Dao et al. 2019,
https://arxiv.org/abs/1903.05895; complex, rectangular and in several blocks: https://arxiv.org/abs/2012.14966).

The factor of stride s and radix r (2 in a butterfly) joins r entries that lie s apart, in every place with another
matrix.  With x seen as (groups, r, s), group g and offset j,

    y[g, a, j] = sum_b factor[g s + j, a, b] x[g, b, j]

A block applies the strides 1, 2, ..., n/2 (increasing) or n/2, ..., 2, 1.  Further blocks go back and forth; two of
them hold every permutation, several of them every sparse matrix.  The layout of a twiddle is the published one: factors
in the order in which they are applied.  Neighbouring factors of radix r and q are one of radix r q (`merge_factors`).

Axes: ... any leading axes, n = 2^m entries, k stacks (matrices side by side), c blocks, m factors, h = n / 2 places of
a factor, r radix.
"""

import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.triton import available
from longreach.ops.triton.monarch import DTYPES, triton_monarch

MERGED_LEVELS = 4
"""How many factors of radix 2 the merged backend joins: 16 x 16 matrices."""
LARGEST_LEVELS = 14
"""Of factors, for which two matrices of up to 128 x 128 in every place are not too many."""


def butterfly_factor(
    x: Inexact[Tensor, "*b n"], factor: Inexact[Tensor, "*b2 h r r"], stride: int
) -> Inexact[Tensor, "*b3 n"]:
    """One factor applied to the last axis, n r operations; the leading axes broadcast."""
    h, r = factor.shape[-3:-1]
    if x.shape[-1] != h * r or h % stride:
        raise InputError(
            f"butterfly_factor: {tuple(factor.shape)} with {stride=} takes {h * r} entries in groups of {r * stride}; "
            f"x has {x.shape[-1]}"
        )
    dtype = torch.promote_types(x.dtype, factor.dtype)
    parts = x.to(dtype).unflatten(-1, (h // stride, r, stride))
    matrices = factor.to(dtype).unflatten(-3, (h // stride, stride))
    if r > 2:
        return _einsum("...gjab,...gbj->...gaj", matrices, parts).flatten(-3)
    columns = matrices.movedim(-3, -1)  # (g, a, b, j): sums of products, without the copies of a matrix product
    return (columns[..., 0, :] * parts[..., :1, :] + columns[..., 1, :] * parts[..., 1:, :]).flatten(-3)


@op
def butterfly_multiply(
    x: Inexact[Tensor, "*b k n"], twiddle: Inexact[Tensor, "k c m h 2 2"], increasing: bool = True
) -> Inexact[Tensor, "*b k n"]:
    """All factors in turn, 2 c n m operations for each of the k stacks; complex where one of the two is complex.

    `increasing` is the direction of the first block.  Autocast rounds neither factors nor products.
    """
    _check(x, twiddle)
    for block, go_up in zip(twiddle.unbind(1), _directions(twiddle, increasing), strict=True):
        factors = block.unbind(1)
        for i, factor in enumerate(factors):
            x = butterfly_factor(x, factor, 2 ** (i if go_up else len(factors) - 1 - i))
    return x


def _few_rows(x: Tensor, twiddle: Tensor, increasing: bool = True) -> str | None:
    if twiddle.shape[2] == 1:
        return "there is one factor, and nothing to merge"
    rows = x.shape[:-2].numel()
    return f"{rows} rows do not pay for the merging" if rows < 2**MERGED_LEVELS else None


@butterfly_multiply.backend("merged", yields=_few_rows)
def _merged(x: Tensor, twiddle: Tensor, increasing: bool = True) -> Tensor:
    """Four factors at a time as 16 x 16 matrices: a fourth of the passes through memory, each by matrix products."""
    _check(x, twiddle)
    levels = twiddle.shape[2]
    for block, go_up in zip(twiddle.unbind(1), _directions(twiddle, increasing), strict=True):
        for start in range(0, levels, MERGED_LEVELS):
            factors = block[:, start : start + MERGED_LEVELS]
            lowest = start if go_up else levels - start - factors.shape[1]
            x = butterfly_factor(x, merge_factors(factors, 2**lowest, go_up), 2**lowest)
    return x


def _triton_refuses(x: Tensor, twiddle: Tensor, increasing: bool = True) -> str | None:
    if twiddle.shape[2] == 1:
        return "there is one factor, and nothing to merge"
    return available.refusal(x.device, torch.promote_types(x.dtype, twiddle.dtype), DTYPES)


def _triton_yields(x: Tensor, twiddle: Tensor, increasing: bool = True) -> str | None:
    if twiddle.shape[2] > LARGEST_LEVELS:
        return f"matrices of more than {2 ** (LARGEST_LEVELS // 2)} entries take more operations than are saved"
    return _few_rows(x, twiddle, increasing) or available.interpretation(x.device)


@butterfly_multiply.backend("triton", refuses=_triton_refuses, yields=_triton_yields)
def _triton(x: Tensor, twiddle: Tensor, increasing: bool = True) -> Tensor:
    """Each half of the factors as one, in float32 at least: a block is a Monarch matrix, and one pass over memory.

    The factors of a block of decreasing strides are those of the adjoint of an increasing one.
    """
    _check(x, twiddle)
    dtype, levels = torch.promote_types(x.dtype, twiddle.dtype), twiddle.shape[2]
    below = (levels + 1) // 2
    wide = twiddle.to(torch.promote_types(dtype, torch.float32))
    for block, go_up in zip(wide.unbind(1), _directions(twiddle, increasing), strict=True):
        lower, upper = (block[:, :below], block[:, below:]) if go_up else (block[:, -below:], block[:, :-below])
        first, second = merge_factors(lower, 1, go_up), merge_factors(upper, 2**below, go_up)
        if not go_up:
            first, second = first.mH, second.mH
        x = triton_monarch(x.to(dtype), first.to(dtype), second.to(dtype), not go_up)
    return x


def merge_factors(
    factors: Inexact[Tensor, "*k m h r r"], stride: int, increasing: bool = True
) -> Inexact[Tensor, "*k _ radix radix"]:
    """m neighbouring factors of radix r, in the order of application, as one of radix r^m: n r^m numbers.

    `stride` is the smallest of theirs, and that of the result.
    """
    merged, *others = factors.unbind(-4)
    for left, factor in zip(reversed(range(len(others))), others, strict=True):
        if increasing:
            merged = _join(merged, factor, stride, lower_first=True)
        else:
            merged = _join(factor, merged, stride * factors.shape[-1] ** left, lower_first=False)
    return merged


def _join(lower: Tensor, upper: Tensor, stride: int, *, lower_first: bool) -> Tensor:
    """The product of a factor of this stride and the one above it, whose stride is that of `lower` times its radix."""
    below, above = lower.shape[-1], upper.shape[-1]
    lower = lower.unflatten(-3, (-1, above, stride))  # (g, digit above, j, new digit below, old digit below)
    upper = upper.unflatten(-3, (-1, below, stride))  # (g, digit below, j, new digit above, old digit above)
    equation = "...gbjua,...gujvb->...gjvuba" if lower_first else "...gvjua,...gajvb->...gjvuba"
    return _einsum(equation, lower, upper).flatten(-6, -5).flatten(-4, -3).flatten(-2)


def _einsum(equation: str, *tensors: Tensor) -> Tensor:
    """Autocast would round every one of the factors."""
    with torch.autocast(tensors[0].device.type, enabled=False):
        return torch.einsum(equation, *tensors)


def transpose_twiddle(twiddle: Inexact[Tensor, "k c m h 2 2"]) -> Inexact[Tensor, "k c m h 2 2"]:
    """The twiddle of the transposed matrices.

    It is applied in the other direction if the number of blocks is odd, in the same if it is even.
    """
    return twiddle.mT.flip([1, 2])


def unitary_twiddle(angles: Float[Tensor, "*k 4"]) -> Complex[Tensor, "*k 2 2"]:
    """Every 2 x 2 unitary matrix from the angles phi, alpha, psi, chi.

    [[cos phi e^i(alpha + psi), sin phi e^i(alpha + chi)], [-sin phi e^i(alpha - chi), cos phi e^i(alpha - psi)]]
    """
    phi, alpha, psi, chi = angles.unbind(-1)
    cosine, sine = phi.cos(), phi.sin()
    sizes = torch.stack([cosine, sine, -sine, cosine], dim=-1)
    turns = torch.stack([alpha + psi, alpha + chi, alpha - chi, alpha - psi], dim=-1)
    return torch.polar(torch.ones_like(turns), turns).mul(sizes).unflatten(-1, (2, 2))


def _directions(twiddle: Tensor, increasing: bool) -> list[bool]:
    """For each block whether its strides increase."""
    return [increasing == (i % 2 == 0) for i in range(twiddle.shape[1])]


def _check(x: Tensor, twiddle: Tensor) -> None:
    k, _, m, h = twiddle.shape[:4]
    if h != 2 ** (m - 1) or x.shape[-2:] != (k, 2 * h):
        raise InputError(
            f"butterfly_multiply: the twiddle {tuple(twiddle.shape)} should be (k, blocks, m, 2^(m-1), 2, 2) and x "
            f"(..., k, 2^m), not {tuple(x.shape)}"
        )
