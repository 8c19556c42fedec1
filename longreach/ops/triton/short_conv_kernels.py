"""Kernels of the short convolution.  A tile's inner axis is the one that lies side by side: positions, or with LAST
channels.  Sizes and strides of that axis are in units of UNIT elements, so that the compiler knows what they divide by.

Axes: CHANNELS x POSITIONS of a tile, WIDTH taps; lag 0 is the current sample, whose tap is the last.
"""

from typing import no_type_check

import triton
import triton.language as tl

from longreach.ops.triton.products import rounded


@triton.jit
@no_type_check
def place(channels, length, n_parts, LAST: tl.constexpr, UNIT: tl.constexpr, CHANNELS: tl.constexpr):
    """Of the program: batch, channels (along their axis), part of the positions, and both sizes in elements."""
    if LAST:
        channels *= UNIT
    else:
        length *= UNIT
    blocks = tl.cdiv(channels, CHANNELS)
    part, outer = tl.program_id(0) % n_parts, tl.program_id(0) // n_parts
    channel = outer % blocks * CHANNELS + tl.arange(0, CHANNELS)
    return (outer // blocks).to(tl.int64), along(channel, not LAST), part, channels, length


@triton.jit
@no_type_check
def along(index, DOWN: tl.constexpr):
    """A column, or a row."""
    return index[:, None] if DOWN else index[None, :]


@triton.jit
@no_type_check
def offset(batch_stride, row_stride, batch, channel, position, LAST: tl.constexpr, UNIT: tl.constexpr):
    """Where elements are."""
    outer, inner = (position, channel) if LAST else (channel, position)
    return batch * batch_stride * UNIT + outer.to(tl.int64) * row_stride * UNIT + inner


@triton.jit
@no_type_check
def there(channel, position, channels, length):
    """Which elements exist."""
    return (channel < channels) & (position >= 0) & (position < length)


@triton.jit
@no_type_check
def dense(batch, channel, position, channels, length, LAST: tl.constexpr):
    """Where elements are in a tensor without gaps."""
    outer, inner = (position * channels.to(tl.int64), channel) if LAST else (channel * length.to(tl.int64), position)
    return batch * channels * length + outer + inner


@triton.jit
@no_type_check
def in_tail(batch, channel, position, channels, WIDTH: tl.constexpr):
    """Where elements before the first position are in the tail, and which of them are."""
    before = position + (WIDTH - 1)
    inside = (channel < channels) & (before >= 0) & (position < 0)
    return (batch * channels + channel) * (WIDTH - 1) + before, inside


@triton.jit
@no_type_check
def samples(x, tail, early, at, batch, channel, position, channels, length, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """The signal, and before it, where tiles may be so `early`, its tail, rounded as the signal is; or zero."""
    found = tl.load(x + at, there(channel, position, channels, length), 0.0).to(WIDE)
    if tail is not None and early:
        at, inside = in_tail(batch, channel, position, channels, WIDTH)
        found += rounded(tl.load(tail + at, inside, 0.0), x.dtype.element_ty).to(WIDE)
    return found


@triton.jit
@no_type_check
def tap(weight, lag, channel, channels, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """What the sample `lag` positions ago is multiplied with, of each channel."""
    return tl.load(weight + channel * WIDTH + (WIDTH - 1 - lag), channel < channels, 0.0).to(WIDE)


SIZES = ["channels", "length", "x_batch", "x_row"]
OF_ADJOINT = ["n_parts", "tiles_each", "grad_batch", "grad_row"]
"""With a few pointers: arguments whose values and alignment compile nothing anew."""


@triton.jit(do_not_specialize=["weight", "bias", "tail", *SIZES])
@no_type_check
def forward(
    x, weight, bias, tail, y, channels, length, x_batch, x_row,
    WIDTH: tl.constexpr, LAST: tl.constexpr, UNIT: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """One tile."""
    WIDE: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    n_tiles = tl.cdiv(length if LAST else length * UNIT, POSITIONS)
    batch, channel, part, channels, length = place(channels, length, n_tiles, LAST, UNIT, CHANNELS)
    position = along(part * POSITIONS + tl.arange(0, POSITIONS), LAST)
    total = tl.zeros([POSITIONS, CHANNELS] if LAST else [CHANNELS, POSITIONS], WIDE)
    for lag in tl.static_range(WIDTH):
        at = offset(x_batch, x_row, batch, channel, position - lag, LAST, UNIT)
        sample = samples(x, tail, part == 0, at, batch, channel, position - lag, channels, length, WIDTH, WIDE)
        total += tap(weight, lag, channel, channels, WIDTH, WIDE) * sample
    if bias is not None:
        total += tl.load(bias + channel, channel < channels, 0.0).to(WIDE)
    at = dense(batch, channel, position, channels, length, LAST)
    tl.store(y + at, rounded(total, y.dtype.element_ty), there(channel, position, channels, length))


@triton.jit(do_not_specialize=["weight", "tail", "grad_tail", *SIZES, *OF_ADJOINT])
@no_type_check
def adjoint(
    x, weight, tail, grad, grad_x, grad_tail, sums, channels, length, n_parts, tiles_each, x_batch, x_row,
    grad_batch, grad_row,
    WIDTH: tl.constexpr, LAST: tl.constexpr, UNIT: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Some tiles: the gradients of samples and tail, and sums for those of taps and bias."""
    WIDE: tl.constexpr = sums.dtype.element_ty
    batch, channel, part, channels, length = place(channels, length, n_parts, LAST, UNIT, CHANNELS)
    zeros = tl.zeros([POSITIONS, CHANNELS] if LAST else [CHANNELS, POSITIONS], WIDE)
    bias_sum, taps, tap_sums = zeros, (), ()
    for lag in tl.static_range(WIDTH):
        taps += (tap(weight, lag, channel, channels, WIDTH, WIDE),)
        tap_sums += (zeros,)
    start, stop = part * tiles_each * POSITIONS, tl.minimum((part + 1) * tiles_each * POSITIONS, length)
    if tail is not None:
        start -= POSITIONS if part == 0 else 0  # which is no less than a tail is long
    for first in range(start, stop, POSITIONS):
        position = along(first + tl.arange(0, POSITIONS), LAST)
        at = offset(x_batch, x_row, batch, channel, position, LAST, UNIT)
        sample = samples(x, tail, first < 0, at, batch, channel, position, channels, length, WIDTH, WIDE)
        total, longer = zeros, ()
        for lag in tl.static_range(WIDTH):
            at = offset(grad_batch, grad_row, batch, channel, position + lag, LAST, UNIT)
            later = tl.load(grad + at, there(channel, position + lag, channels, length), 0.0).to(WIDE)
            if lag == 0:
                bias_sum += later
            total += taps[lag] * later
            longer += (tap_sums[lag] + sample * later,)
        tap_sums = longer
        at = dense(batch, channel, position, channels, length, LAST)
        tl.store(grad_x + at, rounded(total, grad_x.dtype.element_ty), there(channel, position, channels, length))
        if tail is not None:
            at, inside = in_tail(batch, channel, position, channels, WIDTH)
            tl.store(grad_tail + at, rounded(total, grad_tail.dtype.element_ty), inside)
    AXIS: tl.constexpr = 0 if LAST else 1
    channel = tl.reshape(channel, [CHANNELS])
    own = sums + ((batch * n_parts + part) * (WIDTH + 1)) * channels + channel
    for lag in tl.static_range(WIDTH):
        tl.store(own + (WIDTH - 1 - lag) * channels, tl.sum(tap_sums[lag], AXIS), channel < channels)
    tl.store(own + WIDTH * channels, tl.sum(bias_sum, AXIS), channel < channels)
