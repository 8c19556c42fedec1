"""Kernels of sums of complex exponentials: products of two small tables of powers, on tensor cores.

Position l = first + T q + s belongs to row q and column s of a tile of Q x T positions, and z^l = z^(first + T q) z^s.
A program makes both tables itself, for MODES modes at a time.  Exponents are formed in float64 and lose their integer
parts there, powers of two and whole turns; what is left is below 1, and float32 loses none of its digits.

Complex arrays are read as pairs of real numbers.
"""

from typing import no_type_check

import triton
import triton.language as tl

from longreach.ops.triton.products import product

LOG2_E = tl.constexpr(1.4426950408889634)
TURN = tl.constexpr(6.283185307179586)


@triton.jit
@no_type_check
def modes_at(log_ratio, channel, mode, n_modes):
    """log z of modes in float64: real parts in units of log 2, imaginary ones in turns; z = 1 where none is."""
    at = log_ratio + 2 * (channel.to(tl.int64) * n_modes + mode)
    re = tl.load(at, mode < n_modes, 0.0).to(tl.float64) * LOG2_E
    return re, tl.load(at + 1, mode < n_modes, 0.0).to(tl.float64) / TURN


@triton.jit
@no_type_check
def power(log_size, turns, exponent):
    """z^exponent, real and imaginary part, with the error of a few roundings in float32."""
    size, angle = log_size * exponent, turns * exponent
    whole = tl.floor(size + 0.5)
    angle = (angle - tl.floor(angle + 0.5)) * TURN
    scale = (tl.minimum(tl.maximum(whole, -127.0), 128.0).to(tl.int32) + 127 << 23).to(tl.float32, bitcast=True)
    x = ((size - whole) / LOG2_E).to(tl.float32)
    e = 1.3888889e-3 + x * 1.9841270e-4  # the exponential series: |x| < 0.35 makes the next term 1e-9
    e = 1.0 + x * (1.0 + x * (0.5 + x * (0.16666667 + x * (4.1666668e-2 + x * (8.3333338e-3 + x * e)))))
    e = tl.where(scale < float("inf"), e * scale, scale)
    angle = angle.to(tl.float32)
    return e * tl.cos(angle), e * tl.sin(angle)


@triton.jit
@no_type_check
def exponents(l, length):
    """Those of positions that exist: a growing mode could overflow on others, and infinity times zero is not zero."""
    return tl.minimum(l, length - 1).to(tl.float64)


@triton.jit
@no_type_check
def place(length, n_rows, rows_each, Q: tl.constexpr, T: tl.constexpr):
    """Of the program: channel, first and last row, the tile's index, row and column exponents, and positions."""
    tiles = tl.cdiv(length, Q * T)
    tile, channel = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    start = tl.program_id(1) * rows_each
    down, across = tile.to(tl.int64) * (Q * T) + tl.arange(0, Q) * T, tl.arange(0, T)
    return channel, start, tl.minimum(start + rows_each, n_rows), tile, down, across


@triton.jit(do_not_specialize=["coefficient", "log_ratio", "y", "n_rows", "channels", "n_modes", "length", "rows_each"])
@no_type_check
def sums(
    coefficient, log_ratio, y, n_rows, channels, n_modes, length, rows_each,
    Q: tl.constexpr, T: tl.constexpr, MODES: tl.constexpr,
):  # fmt: skip
    """y_l = 2 Re sum_n c_n z_n^l of `rows_each` rows of coefficients, for the positions of a tile."""
    channel, start, stop, _, down, across = place(length, n_rows, rows_each, Q, T)
    position = down[:, None] + across[None, :]
    for row in range(start, stop):
        total = tl.zeros([Q, T], tl.float32)
        own = channels.to(tl.int64) * row + channel
        for first in range(0, n_modes, MODES):
            mode = first + tl.arange(0, MODES)
            size, turns = modes_at(log_ratio, channel, mode, n_modes)
            at, inside = coefficient + 2 * (own * n_modes + mode), mode < n_modes
            c_re, c_im = 2 * tl.load(at, inside, 0.0)[None, :], 2 * tl.load(at + 1, inside, 0.0)[None, :]
            p_re, p_im = power(size[None, :], turns[None, :], exponents(down, length)[:, None])
            q_re, q_im = power(size[:, None], turns[:, None], exponents(across, length)[None, :])
            total = product(c_re * p_re - c_im * p_im, q_re, total, "tf32x3")
            total = product(-c_re * p_im - c_im * p_re, q_im, total, "tf32x3")
        tl.store(y + own * length + position, total, position < length)


@triton.jit(do_not_specialize=["u", "log_ratio", "found", "n_rows", "channels", "n_modes", "length", "rows_each"])
@no_type_check
def moments(
    u, log_ratio, found, n_rows, channels, n_modes, length, rows_each,
    REVERSE: tl.constexpr, Q: tl.constexpr, T: tl.constexpr, MODES: tl.constexpr,
):  # fmt: skip
    """sum_l u_l z_n^l and sum_l l u_l z_n^l over the positions of a tile, for each row: (2, tiles, rows, d, n)."""
    channel, start, stop, tile, down, across = place(length, n_rows, rows_each, Q, T)
    position = down[:, None] + across[None, :]
    place_in_u = length - 1 - position if REVERSE else position
    tiles = tl.cdiv(length, Q * T).to(tl.int64)
    zero = tl.zeros([Q, MODES], tl.float32)
    for row in range(start, stop):
        own = channels.to(tl.int64) * row + channel
        samples = tl.load(u + own * length + place_in_u, position < length, 0.0)
        for first in range(0, n_modes, MODES):
            mode = first + tl.arange(0, MODES)
            size, turns = modes_at(log_ratio, channel, mode, n_modes)
            q_re, q_im = power(size[None, :], turns[None, :], exponents(across, length)[:, None])
            p_re, p_im = power(size[None, :], turns[None, :], exponents(down, length)[:, None])
            re, im = product(samples, q_re, zero, "tf32x3"), product(samples, q_im, zero, "tf32x3")
            l = across[:, None].to(tl.float32)
            l_re, l_im = product(samples, l * q_re, zero, "tf32x3"), product(samples, l * q_im, zero, "tf32x3")
            l_re, l_im = l_re + down[:, None] * re, l_im + down[:, None] * im
            at = found + 2 * (((tile * n_rows).to(tl.int64) * channels + own) * n_modes + mode)
            store(at, p_re, p_im, re, im, mode < n_modes)
            store(at + 2 * tiles * n_rows * channels * n_modes, p_re, p_im, l_re, l_im, mode < n_modes)


@triton.jit
@no_type_check
def store(at, p_re, p_im, re, im, inside):
    """The sum over the rows of a tile of the product of two complex numbers."""
    tl.store(at, tl.sum(p_re * re - p_im * im, 0), inside)
    tl.store(at + 1, tl.sum(p_re * im + p_im * re, 0), inside)
