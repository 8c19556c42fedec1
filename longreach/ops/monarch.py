"""Monarch matrices: block-diagonal factors with shuffles between them (Dao et al. 2022,
https://arxiv.org/abs/2204.00595), of any order p (Fu et al. 2023, https://arxiv.org/abs/2310.12109).

    x <- block_diagonal(x, factor_1)
    x <- block_diagonal(shuffle(x), factor_i)         i = 2 .. p
    y  = the last shuffle undone

A shuffle sees the entries as (rows, blocks) and deals them out as (blocks, rows), so that every block of the next
factor gets something of every block of this one.  For two factors,

    y[s, l] = sum_r second[l, s, r] sum_q first[r, l, q] x[r, q]

p = 2 with blocks of sqrt(n) takes 2 n sqrt(n) operations, and has every butterfly matrix and so every fast transform.
With a width w, w neighbouring entries are shuffled together.

Axes: ... any leading axes, n entries, l blocks, s outputs and r inputs of a block, o and i numbers of blocks.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Complex, Inexact, Int
from torch import Tensor

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.block_diagonal import FEW_ROWS, block_diagonal, product_dtype
from longreach.ops.cooley_tukey import dft_matrix, twiddle_factors
from longreach.ops.triton import available
from longreach.ops.triton.monarch import DTYPES, triton_monarch


@op
def monarch(
    x: Inexact[Tensor, "*b n"], factors: Sequence[Inexact[Tensor, "_ _ _"]], widths: Sequence[int] | None = None
) -> Inexact[Tensor, "*b m"]:
    """The product with the factors (l, s, r), the first one first; sum of l s r operations.

    `widths` has a width for the shuffle after each factor, 1 where left out.  A rank of k, as the paper's
    generalisation has it, is a first factor with k times as many outputs in every block.  Autocast rounds the factors.
    """
    widths = [1] * len(factors) if widths is None else widths
    if len(widths) != len(factors):
        raise InputError(f"monarch: {len(factors)} factors need a width each, not {list(widths)}")
    x = block_diagonal(x, factors[0])
    for factor, width in zip(factors[1:], widths, strict=False):
        x = block_diagonal(_shuffle(x, factor.shape[0], width), factor)
    return _shuffle(x, x.shape[-1] // (factors[-1].shape[0] * widths[-1]), widths[-1])


def _shuffle(x: Tensor, blocks: int, width: int) -> Tensor:
    """(rows, blocks, width) -> (blocks, rows, width) in the last axis."""
    if blocks * width == 0 or x.shape[-1] % (blocks * width):
        raise InputError(f"monarch: {x.shape[-1]} entries cannot be dealt out to {blocks} blocks, {width} at a time")
    return x.unflatten(-1, (-1, blocks, width)).transpose(-2, -3).flatten(-3)


def _triton_refuses(x: Tensor, factors: Sequence[Tensor], widths: Sequence[int] | None = None) -> str | None:
    if len(factors) != 2 or any(width != 1 for width in widths or ()):
        return "has kernels for two factors, shuffled one entry at a time"
    (k, q, p), (l, _, r) = (factor.shape for factor in factors)
    if q % max(1, l) or r * l != k * q or x.shape[-1] != k * p:
        return "has kernels for blocks that each give as many numbers to every block of the next factor"
    if len({product_dtype(tensor) for tensor in (x, *factors)}) > 1:
        return "takes tensors of one dtype"
    return available.refusal(x.device, product_dtype(x), DTYPES)


def _triton_yields(x: Tensor, factors: Sequence[Tensor], widths: Sequence[int] | None = None) -> str | None:
    if x.shape[:-1].numel() < FEW_ROWS:
        return f"{x.shape[:-1].numel()} rows do not fill its tiles"
    return available.interpretation(x.device)


@monarch.backend("triton", refuses=_triton_refuses, yields=_triton_yields)
def _triton(x: Tensor, factors: Sequence[Tensor], widths: Sequence[int] | None = None) -> Tensor:
    """Both factors in one pass over x, in first derivatives too."""
    dtype = product_dtype(x)
    first, second = (factor.to(dtype)[None] for factor in factors)
    return triton_monarch(x.to(dtype)[..., None, :], first, second, False)[..., 0, :]


def near_square(n: int) -> tuple[int, int]:
    """The two factors of n that are nearest to each other, the larger one first."""
    smaller = next(i for i in range(math.isqrt(n), 0, -1) if n % i == 0)
    return n // smaller, smaller


def monarch_dft(
    n: int, *, inverse: bool = False, normalized: bool = False
) -> tuple[Int[Tensor, " n"], Complex[Tensor, "i o r"], Complex[Tensor, "l s r2"]]:
    """The discrete Fourier transform of any size as a Monarch matrix, exact: monarch(x[..., order], [first, second]).

    Sizes of blocks are those of `near_square`; a prime n has one block of n.  `inverse` and `normalized` as the
    fourier_transform of longreach.ops.butterfly_transform has them; complex128.
    """
    larger, smaller = near_square(n)
    order = torch.arange(n).view(smaller, larger).T.flatten()
    scale = 1.0 if not (inverse or normalized) else 1 / (math.sqrt(n) if normalized else n)
    first = twiddle_factors(larger, smaller, inverse)[..., None] * dft_matrix(smaller, inverse)
    second = (scale * dft_matrix(larger, inverse)).expand(smaller, -1, -1)
    return order, first, second
