"""Outer levels of the long convolution's transforms, of lengths that no single program holds.

A level cuts N = L M samples, n = n0 M + m, into columns m, transforms those, and leaves a transform of M to be done for
each of the L frequencies k0:

    Z[k0, m] = exp(-2 pi i m (k0 - q) / N) sum_n0 exp(-2 pi i n0 (k0 - q) / L) x[n0, m],      q = 1/4 at the first level

`enter` does that, `leave` its adjoint.  At the first level x is real, gated where it is read and written, and
only the real part comes back; at others Z is changed in place, which has (row, k0, m) and two planes.
The factor in front is the product of one for every block of columns and one for the columns in a block.
"""

from typing import no_type_check

import triton
import triton.language as tl

from longreach.ops.triton.long_conv_transform import converted, left, left_adjoint, matrix, multiply

SIZES = ["channels", "length", "batch_stride", "channel_stride", "out_stride", "blocks", "plane"]
"""Of the signals: run-time arguments, for which nothing is compiled anew."""


@triton.jit
@no_type_check
def _columns(sizes, L: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr):
    """Where the program's samples are in the real signal, in contiguous signals, and in Z, and which there are."""
    channels, length, batch_stride, channel_stride, out_stride, blocks = sizes
    block, row = (tl.program_id(0) % blocks).to(tl.int64), (tl.program_id(0) // blocks).to(tl.int64)
    n0 = tl.arange(0, L)[:, None].to(tl.int64)
    sample = n0 * (blocks * BLOCK) + block * BLOCK + tl.arange(0, BLOCK)[None, :]
    batch, channel = row // channels, row % channels
    at = (batch * batch_stride + channel * channel_stride) * UNIT + sample
    out = (batch * out_stride + channel * length) * UNIT + sample
    return at, out, row * L * blocks * BLOCK + sample, sample < length.to(tl.int64) * UNIT


@triton.jit
@no_type_check
def _phases(tables, blocks, L: tl.constexpr, BLOCK: tl.constexpr):
    """The factor in front, of the program's columns."""
    fine_re, fine_im = matrix(tables + 2 * L * L, L, BLOCK)
    coarse = tables + 2 * L * (L + BLOCK) + tl.arange(0, L)[:, None] * blocks + tl.program_id(0) % blocks
    return multiply(fine_re, fine_im, tl.load(coarse), tl.load(coarse + L * blocks))


@triton.jit
@no_type_check
def _scaled(x, factor, at, inside):
    """Times a signal, if there is one."""
    if factor is not None:
        x = x * tl.load(factor + at, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def enter(
    signals,
    tables,
    channels,
    length,
    batch_stride,
    channel_stride,
    out_stride,
    blocks,
    plane,
    L: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    REAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """From the product of a signal, one like it and a contiguous one, as far as they are given; or in place."""
    source, gate, contiguous, target = signals
    sizes = channels, length, batch_stride, channel_stride, out_stride, blocks
    at, out, place, inside = _columns(sizes, L, BLOCK, UNIT)
    f_re, f_im = matrix(tables, L, L)
    if REAL:
        x = _scaled(tl.load(source + at, mask=inside, other=0.0).to(tl.float32), gate, at, inside)
        re, im = left(f_re, f_im, _scaled(x, contiguous, out, inside), 0.0, REAL, PRECISION)
    else:
        x_re, x_im = tl.load(target + place).to(tl.float32), tl.load(target + plane + place).to(tl.float32)
        re, im = left(f_re, f_im, x_re, x_im, REAL, PRECISION)
    t_re, t_im = _phases(tables, blocks, L, BLOCK)
    re, im = multiply(re, im, t_re, t_im)
    tl.store(target + place, converted(re, target.dtype.element_ty))
    tl.store(target + plane + place, converted(im, target.dtype.element_ty))


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def leave(
    signals,
    tables,
    channels,
    length,
    batch_stride,
    channel_stride,
    out_stride,
    blocks,
    plane,
    L: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    REAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """To a contiguous signal times a factor, and possibly another one times another factor; or in place."""
    source, target, factor, other_target, other_factor = signals
    sizes = channels, length, batch_stride, channel_stride, out_stride, blocks
    at, out, place, inside = _columns(sizes, L, BLOCK, UNIT)
    re, im = tl.load(source + place).to(tl.float32), tl.load(source + plane + place).to(tl.float32)
    t_re, t_im = _phases(tables, blocks, L, BLOCK)
    re, im = multiply(re, im, t_re, -t_im)
    f_re, f_im = matrix(tables, L, L)
    re, im = left_adjoint(f_re, f_im, re, im, REAL, PRECISION)
    if REAL:
        y = _scaled(re, factor, at, inside)
        tl.store(target + out, converted(y, target.dtype.element_ty), mask=inside)
        if other_target is not None:
            y = _scaled(re, other_factor, at, inside)
            tl.store(other_target + out, converted(y, other_target.dtype.element_ty), mask=inside)
    else:
        tl.store(source + place, converted(re, source.dtype.element_ty))
        tl.store(source + plane + place, converted(im, source.dtype.element_ty))
