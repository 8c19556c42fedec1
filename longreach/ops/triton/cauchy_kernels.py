"""Kernels of sums of simple poles, and of their adjoint.

With i = 1 / (z - w) and j = 1 / (z - conj(w)) a coefficient v contributes Re v (i + j) + Im v (i - j) sqrt(-1): four
real products for each row, whose poles are the same.  Differences z - w are formed as they stand, so that no digit is
lost next to a pole.  Complex arrays are read as pairs of real numbers, in their own precision.
"""

from typing import no_type_check

import triton
import triton.language as tl

FAR = tl.constexpr(1e15)
"""A point where there is none, away from all poles: its gradient is zero, and zero times infinity would not be."""


@triton.jit
@no_type_check
def pair(source, at, inside, other):
    """A complex number."""
    return tl.load(source + 2 * at, inside, other), tl.load(source + 2 * at + 1, inside, 0.0)


@triton.jit
@no_type_check
def store_pair(target, at, inside, re, im):
    """The opposite."""
    tl.store(target + 2 * at, re, inside)
    tl.store(target + 2 * at + 1, im, inside)


@triton.jit
@no_type_check
def fractions(z_re, z_im, w_re, w_im):
    """i and j."""
    x, above, below = z_re - w_re, z_im - w_im, z_im + w_im
    first, second = 1.0 / (x * x + above * above), 1.0 / (x * x + below * below)
    return x * first, -above * first, x * second, -below * second


@triton.jit(do_not_specialize=["v", "z", "w", "r", "n_rows", "channels", "n_poles", "n_points"])
@no_type_check
def sums(v, z, w, r, n_rows, channels, n_poles, n_points, ROWS: tl.constexpr, POINTS: tl.constexpr):
    """r_k of ROWS rows of coefficients at POINTS points; the poles one after the other."""
    blocks = tl.cdiv(n_points, POINTS)
    channel = (tl.program_id(0) // blocks).to(tl.int64)
    point = (tl.program_id(0) % blocks * POINTS + tl.arange(0, POINTS))[None, :].to(tl.int64)
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    z_re, z_im = pair(z, point, point < n_points, FAR)
    re = tl.zeros([ROWS, POINTS], r.dtype.element_ty)
    im = re
    for pole in range(n_poles):
        at = channel * n_poles + pole
        i_re, i_im, j_re, j_im = fractions(z_re, z_im, tl.load(w + 2 * at), tl.load(w + 2 * at + 1))
        v_re, v_im = pair(v, row * channels * n_poles + at, row < n_rows, 0.0)
        re += v_re * (i_re + j_re) + v_im * (j_im - i_im)
        im += v_re * (i_im + j_im) + v_im * (i_re - j_re)
    store_pair(r, (row * channels + channel) * n_points + point, (row < n_rows) & (point < n_points), re, im)


@triton.jit
@no_type_check
def squared(re, im):
    """The square of a complex number."""
    return re * re - im * im, 2 * re * im


@triton.jit(do_not_specialize=["grad", "z", "w", "found", "n_rows", "channels", "n_poles", "n_points", "points_each"])
@no_type_check
def adjoint(
    grad, z, w, found, n_rows, channels, n_poles, n_points, points_each,
    ROWS: tl.constexpr, POLES: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """Of `points_each` points, for ROWS rows and POLES poles: (2, parts, rows, d, n).

    First the gradient of v, then sum_k g_k conj(i_k^2) + conj(g_k) j_k^2, which times conj(v) is that of w.
    """
    blocks = tl.cdiv(n_poles, POLES)
    channel, part = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(2).to(tl.int64)
    pole = (tl.program_id(0) % blocks * POLES + tl.arange(0, POLES))[None, :, None].to(tl.int64)
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None, None].to(tl.int64)
    w_re, w_im = pair(w, channel * n_poles + pole, pole < n_poles, 0.0)
    v_re = tl.zeros([ROWS, POLES, POINTS], found.dtype.element_ty)
    v_im, s_re, s_im = v_re, v_re, v_re
    for first in range(0, points_each, POINTS):
        offset = first + tl.arange(0, POINTS)[None, None, :]
        point = part * points_each + offset
        inside = (point < n_points) & (offset < points_each)
        z_re, z_im = pair(z, point, inside, FAR)
        g_re, g_im = pair(grad, (row * channels + channel) * n_points + point, inside & (row < n_rows), 0.0)
        i_re, i_im, j_re, j_im = fractions(z_re, z_im, w_re, w_im)
        v_re += g_re * (i_re + j_re) + g_im * (i_im + j_im)
        v_im += g_re * (j_im - i_im) + g_im * (i_re - j_re)
        (i_re, i_im), (j_re, j_im) = squared(i_re, i_im), squared(j_re, j_im)
        s_re += g_re * (i_re + j_re) + g_im * (i_im + j_im)
        s_im += g_im * (i_re - j_re) + g_re * (j_im - i_im)
    rows_at = ((part * n_rows + row) * channels + channel) * n_poles + pole
    plane = tl.num_programs(2).to(tl.int64) * n_rows * channels * n_poles
    inside = (row < n_rows) & (pole < n_poles)
    store_pair(found, rows_at, inside, tl.sum(v_re, 2, True), tl.sum(v_im, 2, True))
    store_pair(found, plane + rows_at, inside, tl.sum(s_re, 2, True), tl.sum(s_im, 2, True))
