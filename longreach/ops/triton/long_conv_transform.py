"""Kernels of the long convolution: transforms of whole rows as matrix products (FlashFFTConv's algorithm).

The right-angle transform of N real samples (csrc/right_angle.h has the algebra) needs no zero half:

    X_k = sum_n v_n exp(-2 pi i n (k - 1/4) / N),      conv(v, f) = Re F^-1(F v F f),      n, k = 0 .. N - 1

Cut into matrices, n = n1 N2 + n2 and k = k1 + N1 k2, it is two products around a pointwise factor:

    X[k1, k2] = sum_n2  T[k1, n2] (sum_n1 F1[k1, n1] v[n1, n2])  F2[n2, k2]
    F1 = exp(-2 pi i n1 (k1 - 1/4) / N1),  T = exp(-2 pi i n2 (k1 - 1/4) / N),  F2 = exp(-2 pi i n2 k2 / N2)

The quarter turn costs nothing, the first product has a real factor and the last one of the inverse needs a real result:
half of a complex product each.  Frequencies stay where the products leave them, as spectra are only multiplied.
What does not fit into one program has outer levels (`enter`, `leave`) of the same form; what is in between are plain
transforms, without the quarter turn, of complex rows.

A program holds ROWS rows of a channel side by side as (N1, ROWS N2), which is (N1 ROWS, N2) without moving anything.
Complex numbers are two planes, real parts first.

Axes: n1 and n2 samples, k1 and k2 frequencies of the two factors, all of them powers of two.
"""

from typing import no_type_check

import triton
import triton.language as tl

from longreach.ops.triton.products import INTERPRETED, product

SPLIT = tl.constexpr(8193.0)
"""x SPLIT - (x SPLIT - x) is x rounded to 11 digits (Dekker, https://doi.org/10.1007/BF01397083)."""


@triton.jit
@no_type_check
def converted(x, DTYPE: tl.constexpr):
    """To the nearest number of another dtype; by itself the interpreter cuts digits off for bfloat16."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        x = x * 65537.0 - (x * 65537.0 - x)
    return x.to(DTYPE)


@triton.jit
@no_type_check
def _product(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a b, of factors rounded to "tf32", hardly ("tf32x3") or not at all ("ieee").

    Tensor cores cut off what tf32 does not hold, which eight times in a row is a bias, so it is rounded before.
    """
    if PRECISION == "tf32":
        y = product(a * SPLIT - (a * SPLIT - a), b * SPLIT - (b * SPLIT - b), accumulator, "tf32")
    elif INTERPRETED and PRECISION == "tf32x3":  # what the compiler makes of it
        a_high, b_high = a * SPLIT - (a * SPLIT - a), b * SPLIT - (b * SPLIT - b)
        y = tl.dot(a - a_high, b_high, tl.dot(a_high, b - b_high, accumulator))
        y = tl.dot(a_high, b_high, y)
    else:
        y = product(a, b, accumulator, PRECISION)
    return y


@triton.jit
@no_type_check
def anew(tables):
    """The same address, of which the compiler does not know it.

    It would keep in registers, of which there are not enough, what can be read again from the first-level cache.
    """
    if not INTERPRETED:
        zero = tl.inline_asm_elementwise("mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1)
        tables += tl.multiple_of(zero, 16)
    return tables


@triton.jit
@no_type_check
def multiply(a_re, a_im, b_re, b_im):
    """Complex numbers, one by one."""
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


@triton.jit
@no_type_check
def matrix(table, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A complex matrix, real part first."""
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return tl.load(table + at), tl.load(table + ROWS * COLUMNS + at)


@triton.jit
@no_type_check
def left(f_re, f_im, re, im, REAL: tl.constexpr, PRECISION: tl.constexpr):
    """F x; the imaginary part of real x is not looked at."""
    zero = tl.zeros((f_re.shape[0], re.shape[1]), tl.float32)
    y_re = _product(f_re, re, zero, PRECISION)
    y_im = _product(f_im, re, zero, PRECISION)
    if not REAL:
        y_re = _product(-f_im, im, y_re, PRECISION)
        y_im = _product(f_re, im, y_im, PRECISION)
    return y_re, y_im


@triton.jit
@no_type_check
def left_adjoint(f_re, f_im, re, im, REAL: tl.constexpr, PRECISION: tl.constexpr):
    """The conjugate transpose of F times x; only the real part is computed if REAL."""
    f_re, f_im = tl.trans(f_re), tl.trans(f_im)
    zero = tl.zeros((f_re.shape[0], re.shape[1]), tl.float32)
    y_re = _product(f_im, im, _product(f_re, re, zero, PRECISION), PRECISION)
    y_im = y_re
    if not REAL:
        y_im = _product(-f_im, re, _product(f_re, im, zero, PRECISION), PRECISION)
    return y_re, y_im


@triton.jit
@no_type_check
def _right(re, im, f_re, f_im, PRECISION: tl.constexpr):
    """x F"""
    zero = tl.zeros((re.shape[0], f_re.shape[1]), tl.float32)
    y_re = _product(im, -f_im, _product(re, f_re, zero, PRECISION), PRECISION)
    y_im = _product(im, f_re, _product(re, f_im, zero, PRECISION), PRECISION)
    return y_re, y_im


@triton.jit
@no_type_check
def _twiddles(tables, N1: tl.constexpr, N2: tl.constexpr, ROWS: tl.constexpr):
    """T for every row."""
    at = 2 * N1 * N1 + tl.arange(0, N1)[:, None] * N2 + (tl.arange(0, ROWS * N2) % N2)[None, :]
    return tl.load(tables + at), tl.load(tables + N1 * N2 + at)


@triton.jit
@no_type_check
def transform(
    re,
    im,
    tables,
    N1: tl.constexpr,
    N2: tl.constexpr,
    ROWS: tl.constexpr,
    REAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(N1, ROWS N2) samples to (N1 ROWS, N2) frequencies; of real samples `im` is not looked at."""
    tables = anew(tables)
    f_re, f_im = matrix(tables, N1, N1)
    re, im = left(f_re, f_im, re, im, REAL, PRECISION)
    t_re, t_im = _twiddles(tables, N1, N2, ROWS)
    re, im = multiply(re, im, t_re, t_im)
    f_re, f_im = matrix(tables + 2 * N1 * (N1 + N2), N2, N2)
    re, im = tl.reshape(re, (N1 * ROWS, N2)), tl.reshape(im, (N1 * ROWS, N2))
    return _right(re, im, f_re, f_im, PRECISION)


@triton.jit
@no_type_check
def inverse(
    re,
    im,
    tables,
    N1: tl.constexpr,
    N2: tl.constexpr,
    ROWS: tl.constexpr,
    REAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """N times the inverse of `transform`; only the real part if REAL."""
    tables = anew(tables)
    f_re, f_im = matrix(tables + 2 * N1 * (N1 + N2), N2, N2)
    re, im = _right(re, im, f_re, -f_im, PRECISION)
    re, im = tl.reshape(re, (N1, ROWS * N2)), tl.reshape(im, (N1, ROWS * N2))
    t_re, t_im = _twiddles(tables, N1, N2, ROWS)
    re, im = multiply(re, im, t_re, -t_im)
    f_re, f_im = matrix(tables, N1, N1)
    return left_adjoint(f_re, f_im, re, im, REAL, PRECISION)
