"""Kernels of the linear recurrence.  A program walks along ROWS chunks of time at once, in BLOCK channels of each.

Every lane is one channel of one chunk; it carries its state in registers, and neighbours read neighbouring channels.
Numbers are computed in the dtype of the states between the chunks.  Complex arrays are read as pairs of real numbers.
Offsets count pairs or real numbers, in 64 bits.  Steps count in the order of the walk, backwards in time with REVERSE.
"""

from typing import no_type_check

import triton
import triton.language as tl

from longreach.ops.triton import linear_scan as launcher

UNROLL = tl.constexpr(launcher.UNROLL)
AHEAD = tl.constexpr(8)
"""Chunks that the carry loads at a time: a store stops later loads, as it may have written what they read."""


@triton.jit
@no_type_check
def read(source, at, inside, COMPLEX: tl.constexpr, WIDE: tl.constexpr):
    """Real and imaginary parts; the latter are zero for a real array, and nothing reads them."""
    if COMPLEX:
        return tl.load(source + 2 * at, inside, 0.0).to(WIDE), tl.load(source + 2 * at + 1, inside, 0.0).to(WIDE)
    re = tl.load(source + at, inside, 0.0).to(WIDE)
    return re, tl.zeros_like(re)


@triton.jit
@no_type_check
def write(target, at, inside, re, im, COMPLEX: tl.constexpr):
    """The opposite of `read`."""
    if COMPLEX:
        tl.store(target + 2 * at, re.to(target.dtype.element_ty), inside)
        tl.store(target + 2 * at + 1, im.to(target.dtype.element_ty), inside)
    else:
        tl.store(target + at, re.to(target.dtype.element_ty), inside)


@triton.jit
@no_type_check
def multiply_add(a_re, a_im, b_re, b_im, c_re, c_im, COMPLEX: tl.constexpr):
    """a b + c."""
    if COMPLEX:
        return a_re * b_re - a_im * b_im + c_re, a_re * b_im + a_im * b_re + c_im
    return a_re * b_re + c_re, b_im


@triton.jit
@no_type_check
def position(step, length, REVERSE: tl.constexpr):
    """Where in time the walk is."""
    return length - 1 - step if REVERSE else step


@triton.jit
@no_type_check
def place(n_chunks, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Of the program: batch, chunks (a column), channels (a row), where its states are, and which of them there are."""
    blocks, batch = tl.cdiv(channels, BLOCK), tl.program_id(0).to(tl.int64)
    chunk = (tl.program_id(1) // blocks * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    channel = (tl.program_id(1) % blocks * BLOCK + tl.arange(0, BLOCK))[None, :].to(tl.int64)
    inside = (chunk < n_chunks) & (channel < channels)
    return batch, chunk, channel, (batch * n_chunks + chunk) * channels + channel, inside


@triton.jit
@no_type_check
def ratio(a, step, channel, inside, length, a_time, a_channel, SHIFT, REVERSE, COMPLEX, WIDE):
    """What the state is multiplied with at `step`: a there, or with SHIFT, conjugated, a one step before, if any."""
    at = position(step - SHIFT, length, REVERSE) * a_time + channel * a_channel
    re, im = read(a, at, inside & (step >= SHIFT), COMPLEX, WIDE)
    return re, -im if SHIFT else im


RUNTIME = ["a", "x", "factors", "totals", "length", "channels", "n_chunks", "chunk_length"]
STRIDES = ["a_batch", "a_time", "a_channel"]
"""With RUNTIME: arguments whose values and alignment compile nothing anew."""


@triton.jit(do_not_specialize=[*RUNTIME, *STRIDES])
@no_type_check
def aggregate(
    a, x, factors, totals, length, channels, n_chunks, chunk_length, a_batch, a_time, a_channel,
    SHIFT: tl.constexpr, REVERSE: tl.constexpr, COMPLEX: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A chunk maps the state that enters it to factor * it + total."""
    WIDE: tl.constexpr = totals.dtype.element_ty
    batch, chunk, channel, own, inside = place(n_chunks, channels, ROWS, BLOCK)
    a += batch * a_batch * (2 if COMPLEX else 1)
    start = batch * length * channels + channel
    re, im = tl.zeros([ROWS, BLOCK], WIDE), tl.zeros([ROWS, BLOCK], WIDE)
    f_re, f_im, zero = re + 1, im, re
    for within in tl.range(0, chunk_length, loop_unroll_factor=UNROLL):
        step = chunk * chunk_length + within
        there = inside & (step < length)
        a_re, a_im = ratio(a, step, channel, there, length, a_time, a_channel, SHIFT, REVERSE, COMPLEX, WIDE)
        x_re, x_im = read(x, start + position(step, length, REVERSE) * channels, there, COMPLEX, WIDE)
        re, im = multiply_add(a_re, a_im, re, im, x_re, x_im, COMPLEX)
        f_re, f_im = multiply_add(a_re, a_im, f_re, f_im, zero, zero, COMPLEX)
    write(factors, own, inside, f_re, f_im, COMPLEX)
    write(totals, own, inside, re, im, COMPLEX)


@triton.jit(do_not_specialize=["initial", "factors", "totals", "channels", "n_chunks"])
@no_type_check
def carry(initial, factors, totals, channels, n_chunks, COMPLEX: tl.constexpr, BLOCK: tl.constexpr):
    """From chunk to chunk: totals are replaced by the states that enter the chunks, from `initial` on."""
    WIDE: tl.constexpr = totals.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    channel = (tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = channel < channels
    re, im = read(initial, batch * channels + channel, inside, COMPLEX, WIDE)
    for first in range(0, n_chunks, AHEAD):
        loaded = ()
        for k in tl.static_range(AHEAD):
            chunk = tl.full([BLOCK], k, tl.int64) + first
            at = (batch * n_chunks + chunk) * channels + channel
            there = inside & (chunk < n_chunks)
            loaded += ((at, there, read(factors, at, there, COMPLEX, WIDE), read(totals, at, there, COMPLEX, WIDE)),)
        for k in tl.static_range(AHEAD):
            at, there, (f_re, f_im), (t_re, t_im) = loaded[k]
            write(totals, at, there, re, im, COMPLEX)
            re, im = multiply_add(f_re, f_im, re, im, t_re, t_im, COMPLEX)


@triton.jit(do_not_specialize=["entering", "h", "other", "product", *RUNTIME, *STRIDES])
@no_type_check
def walk(
    a, x, entering, h, other, product, length, channels, n_chunks, chunk_length, a_batch, a_time, a_channel,
    SHIFT: tl.constexpr, REVERSE: tl.constexpr, COMPLEX: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All states; and with SHIFT the product of each with the conjugate of `other` one step further, 0 if none is."""
    WIDE: tl.constexpr = entering.dtype.element_ty
    batch, chunk, channel, own, inside = place(n_chunks, channels, ROWS, BLOCK)
    a += batch * a_batch * (2 if COMPLEX else 1)
    start = batch * length * channels + channel
    re, im = read(entering, own, inside, COMPLEX, WIDE)
    zero = tl.zeros_like(re)
    for first in range(0, chunk_length, UNROLL):
        loaded = ()
        for within in tl.static_range(UNROLL):
            step = chunk * chunk_length + first + within
            there = inside & (step < length)
            ratios = ratio(a, step, channel, there, length, a_time, a_channel, SHIFT, REVERSE, COMPLEX, WIDE)
            inputs = read(x, start + position(step, length, REVERSE) * channels, there, COMPLEX, WIDE)
            factors = zero, zero
            if SHIFT:
                further = start + position(step + 1, length, REVERSE) * channels
                factors = read(other, further, there & (step + 1 < length), COMPLEX, WIDE)
            loaded += ((step, ratios, inputs, factors),)
        for within in tl.static_range(UNROLL):
            step, (a_re, a_im), (x_re, x_im), (o_re, o_im) = loaded[within]
            there = inside & (step < length)
            at = start + position(step, length, REVERSE) * channels
            re, im = multiply_add(a_re, a_im, re, im, x_re, x_im, COMPLEX)
            write(h, at, there, re, im, COMPLEX)
            if SHIFT:
                p_re, p_im = multiply_add(o_re, -o_im, re, im, zero, zero, COMPLEX)
                write(product, at, there, p_re, p_im, COMPLEX)
