"""The Fourier transform as Cooley and Tukey (1965) factor it, with any matrices in the place of the small transforms.

With n = r_1 r_2 ... r_p, the index of x as digits (j_1, ..., j_p), the first one the highest, and n_i = r_i ... r_p,

    x[.., k_i, ..] <- exp(-2 pi i k_i (j_{i+1} .. j_p) / n_i) sum_{j_i} matrix_i[k_i, j_i] x[.., j_i, ..]     i = 1 .. p
    y[k_p, ..., k_1] = x[k_1, ..., k_p]

n (r_1 + ... + r_p) operations.  p = 2 is the Monarch form of FlashFFTConv (https://arxiv.org/abs/2311.05908), radix 2
the butterfly; with trained matrices it is the learned transform of FlashButterfly (https://arxiv.org/abs/2302.06646).

Axes: ... any leading axes, n entries, r radix of a level, g places of a level (n / r).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Complex, Inexact
from torch import Tensor

from longreach.errors import InputError
from longreach.ops.backend import op


def dft_matrix(n: int, inverse: bool = False) -> Complex[Tensor, "{n} {n}"]:
    """exp(-2 pi i j k / n), or its conjugate; complex128, angles reduced to one turn first."""
    return twiddle_factors(n, n, inverse, n)


def twiddle_factors(
    rows: int, columns: int, inverse: bool = False, period: int | None = None
) -> Complex[Tensor, "{rows} {columns}"]:
    """exp(-2 pi i j k / period), or its conjugate; the period is rows * columns if not given; complex128."""
    period = rows * columns if period is None else period
    turns = (torch.arange(rows)[:, None] * torch.arange(columns) % period).double() / period
    angle = turns * (2 * math.pi if inverse else -2 * math.pi)
    return torch.polar(torch.ones_like(angle), angle)


def radices(n: int, radix: int) -> list[int]:
    """The levels of a transform of n = 2^m entries: as many of this radix as fit, then what is left."""
    levels = [radix] * ((n.bit_length() - 1) // (radix.bit_length() - 1))
    left = n // radix ** len(levels)
    return [*levels, left] if left > 1 else levels


@op
def cooley_tukey(
    x: Inexact[Tensor, "*b n"], matrices: Sequence[Complex[Tensor, "*h _ _"]], *, in_order: bool = True
) -> Complex[Tensor, "*b2 n"]:
    """The transform with one square matrix for each level, whose leading axes broadcast with those of `x`.

    Without `in_order` the last line of the definition is left out: the result has its digits in reverse.
    """
    sizes = [matrix.shape[-1] for matrix in matrices]
    if math.prod(sizes) != x.shape[-1]:
        raise InputError(f"cooley_tukey: levels of {sizes} make {math.prod(sizes)} entries; x has {x.shape[-1]}")
    rest = x.shape[-1]
    for size, matrix in zip(sizes, matrices, strict=True):
        rest //= size
        digits = x.to(torch.promote_types(x.dtype, matrix.dtype)).unflatten(-1, (-1, size, rest))
        x = torch.einsum("...ab,...gbj->...gaj", matrix.to(digits.dtype), digits)
        if rest > 1:
            x = x * twiddle_factors(size, rest).to(x)
        x = x.flatten(-3)
    return digits_reversed(x, sizes) if in_order else x


def digits_reversed(x: Inexact[Tensor, "*b n"], sizes: Sequence[int]) -> Inexact[Tensor, "*b n"]:
    """The entries with their digits, of these sizes from the highest on, in reverse."""
    axes = [-1 - i for i in range(len(sizes))]
    leading: list[Any] = list(range(x.ndim - 1))
    return x.unflatten(-1, tuple(sizes)).permute(*leading, *axes).flatten(-len(sizes))
