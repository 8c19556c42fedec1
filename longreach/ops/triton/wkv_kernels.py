"""Kernels of WKV and of its adjoint: chunks of time side by side, in programs of ROWS chunks and BLOCK channels each.

What a chunk does to a state (numerator, denominator, exponent): it lets it decay, and adds its own sums.  The adjoint
of a state has the same form, and goes through the chunks the other way.  Numbers are as wide as the state's.
A state between chunks is three planes of (batch, chunk, channel), a fourth one is the decay.
"""

from typing import no_type_check

import triton
import triton.language as tl

from longreach.ops import wkv_state
from longreach.ops.triton.linear_scan_kernels import AHEAD, UNROLL, place

EMPTY = tl.constexpr(wkv_state.EMPTY)


@triton.jit
@no_type_check
def join(state, decay, added, exponent):
    """The sums of `state` after `decay`, and others given with their exponent."""
    highest = tl.maximum(state[2] + decay, exponent)
    old, new = tl.exp(state[2] + decay - highest), tl.exp(exponent - highest)
    return state[0] * old + added[0] * new, state[1] * old + added[1] * new, highest


@triton.jit
@no_type_check
def load_state(states, plane, at, inside):
    """Three planes."""
    first, second = tl.load(states + at, inside, 0.0), tl.load(states + plane + at, inside, 0.0)
    return first, second, tl.load(states + 2 * plane + at, inside, EMPTY)


@triton.jit
@no_type_check
def store_state(states, plane, at, inside, state):
    """The opposite."""
    tl.store(states + at, state[0], inside)
    tl.store(states + plane + at, state[1], inside)
    tl.store(states + 2 * plane + at, state[2], inside)


@triton.jit
@no_type_check
def parts_of(key, value, mask, at, row, there, WIDE: tl.constexpr):
    """Key and value at a position, and whether it counts."""
    if mask is not None:
        there = there & (tl.load(mask + row, there, 0) != 0)
    return tl.load(key + at, there, EMPTY).to(WIDE), tl.load(value + at, there, 0.0).to(WIDE), there


@triton.jit
@no_type_check
def average(past, present, value):
    """y, its denominator and exponent, and the weight of the present one."""
    highest = tl.maximum(past[2], present)
    old, new = tl.exp(past[2] - highest), tl.exp(present - highest)
    total = old * past[1] + new
    return (old * past[0] + new * value) / total, total, highest, new


TENSORS = ["log_decay", "bonus", "key", "value", "mask", "states"]
SIZES = ["length", "channels", "n_chunks", "chunk_length"]
"""With TENSORS: arguments whose values and alignment compile nothing anew."""


@triton.jit(do_not_specialize=[*TENSORS, *SIZES])
@no_type_check
def aggregate(
    log_decay, key, value, mask, states, length, channels, n_chunks, chunk_length,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Every chunk from an empty state, and how much it lets others decay."""
    WIDE: tl.constexpr = states.dtype.element_ty
    batch, chunk, channel, own, inside = place(n_chunks, channels, ROWS, BLOCK)
    w = tl.load(log_decay + channel, channel < channels, 0.0)
    zeros, plane = tl.zeros([ROWS, BLOCK], WIDE), tl.num_programs(0).to(tl.int64) * n_chunks * channels
    n, d, e, count = zeros, zeros, zeros + EMPTY, zeros
    for within in tl.range(0, chunk_length, loop_unroll_factor=UNROLL):
        step = chunk * chunk_length + within
        row = batch * length + step
        k, v, there = parts_of(key, value, mask, row * channels + channel, row, inside & (step < length), WIDE)
        one = tl.where(there, zeros + 1, zeros)
        n, d, e = join((n, d, e), w * one, (v * one, one), k)
        count += one
    store_state(states, plane, own, inside, (n, d, e))
    tl.store(states + 3 * plane + own, w * count, inside)


@triton.jit(do_not_specialize=["initial", "final", "states", "channels", "n_chunks"])
@no_type_check
def carry(initial, final, states, channels, n_chunks, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """From chunk to chunk: each gets the state that enters it instead of its own sums; and the state after all."""
    blocks, wide_channels = tl.cdiv(channels, BLOCK), channels.to(tl.int64)
    batch, batches = (tl.program_id(0) // blocks).to(tl.int64), tl.num_programs(0) // blocks
    channel = (tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside, plane = channel < channels, n_chunks * batches * wide_channels
    n, d, e = load_state(initial, batches * wide_channels, batch * channels + channel, inside)
    for first in range(0, n_chunks, AHEAD):
        loaded = ()
        for k in tl.static_range(AHEAD):
            chunk = tl.full([BLOCK], k, tl.int64) + first
            there = inside & (chunk < n_chunks)
            at = (batch * n_chunks + (n_chunks - 1 - chunk if REVERSE else chunk)) * channels + channel
            sums = load_state(states, plane, at, there)
            loaded += ((at, there, sums, tl.load(states + 3 * plane + at, there, 0.0)),)
        for k in tl.static_range(AHEAD):
            at, there, sums, decay = loaded[k]
            store_state(states, plane, at, there, (n, d, e))
            n, d, e = join((n, d, e), decay, (sums[0], sums[1]), sums[2])
    store_state(final, batches * wide_channels, batch * channels + channel, inside, (n, d, e))


@triton.jit(do_not_specialize=[*TENSORS, "y", "past", *SIZES])
@no_type_check
def walk(
    log_decay, bonus, key, value, mask, states, y, past, length, channels, n_chunks, chunk_length,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The averages, 0 where nothing counts; or, for the adjoint, the state before every position, in `past`."""
    WIDE: tl.constexpr = states.dtype.element_ty
    batch, chunk, channel, own, inside = place(n_chunks, channels, ROWS, BLOCK)
    w = tl.load(log_decay + channel, channel < channels, 0.0)
    batches, zeros = tl.num_programs(0).to(tl.int64), tl.zeros([ROWS, BLOCK], WIDE)
    n, d, e = load_state(states, batches * n_chunks * channels, own, inside)
    u = tl.load(bonus + channel, channel < channels, 0.0)
    for first in range(0, chunk_length, UNROLL):
        loaded = ()
        for within in tl.static_range(UNROLL):
            step = chunk * chunk_length + first + within
            row, exists = batch * length + step, inside & (step < length)
            at = row * channels + channel
            loaded += ((at, exists, parts_of(key, value, mask, at, row, exists, WIDE)),)
        for within in tl.static_range(UNROLL):
            at, exists, (k, v, there) = loaded[within]
            if past is None:
                result, _, _, _ = average((n, d, e), u + k, v)
                tl.store(y + at, tl.where(there, result, zeros), exists)
            else:
                store_state(past, batches * length * channels, at, exists, (n, d, e))
            one = tl.where(there, zeros + 1, zeros)
            n, d, e = join((n, d, e), w * one, (v * one, one), k)


@triton.jit
@no_type_check
def passed_back(log_decay, bonus, key, value, mask, past, grad, row, channel, channels, plane, exists):
    """What a position adds to the adjoint of the state before it, and what its own gradients need."""
    WIDE: tl.constexpr = past.dtype.element_ty
    at = row * channels + channel
    k, v, there = parts_of(key, value, mask, at, row, exists, WIDE)
    before = load_state(past, plane, at, there)
    u = tl.load(bonus + channel, channel < channels, 0.0)
    y, total, highest, new = average(before, u + k, v)
    g = tl.load(grad + at, there, 0.0).to(WIDE) / tl.where(there, total, total * 0 + 1)
    return (g, -g * y), tl.where(there, -highest, highest * 0 + EMPTY), g * new, g * new * (v - y), k, v, before, there


@triton.jit(do_not_specialize=[*TENSORS, "past", "grad", *SIZES])
@no_type_check
def aggregate_adjoint(
    log_decay, bonus, key, value, mask, states, past, grad, length, channels, n_chunks, chunk_length,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Every chunk from its end to its beginning, as if nothing came after it."""
    WIDE: tl.constexpr = states.dtype.element_ty
    batch, chunk, channel, own, inside = place(n_chunks, channels, ROWS, BLOCK)
    w, batches = tl.load(log_decay + channel, channel < channels, 0.0), tl.num_programs(0).to(tl.int64)
    zeros, plane = tl.zeros([ROWS, BLOCK], WIDE), batches * length * channels
    n, d, e = zeros, zeros, zeros + EMPTY
    for within in tl.range(0, chunk_length, loop_unroll_factor=2):
        step = (chunk + 1) * chunk_length - 1 - within
        added, exponent, _, _, _, _, _, there = passed_back(
            log_decay, bonus, key, value, mask, past, grad, batch * length + step, channel, channels, plane,
            inside & (step < length),
        )  # fmt: skip
        n, d, e = join((n, d, e), tl.where(there, w, zeros), added, exponent)
    store_state(states, batches * n_chunks * channels, own, inside, (n, d, e))


@triton.jit(do_not_specialize=[*TENSORS, "past", "grad", "grads", "sums", *SIZES])
@no_type_check
def walk_adjoint(
    log_decay, bonus, key, value, mask, states, past, grad, grads, sums, length, channels, n_chunks, chunk_length,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values, and the sums of those of decay and bonus over each chunk."""
    WIDE: tl.constexpr = states.dtype.element_ty
    batch, chunk, channel, own, inside = place(n_chunks, channels, ROWS, BLOCK)
    w, batches = tl.load(log_decay + channel, channel < channels, 0.0), tl.num_programs(0).to(tl.int64)
    zeros, plane = tl.zeros([ROWS, BLOCK], WIDE), batches * length * channels
    n, d, e = load_state(states, batches * n_chunks * channels, own, inside)
    sum_w, sum_u = zeros, zeros
    for end in range(0, chunk_length, UNROLL):
        loaded = ()
        for within in tl.static_range(UNROLL):
            step = (chunk + 1) * chunk_length - 1 - end - within
            row, exists = batch * length + step, inside & (step < length)
            found = passed_back(log_decay, bonus, key, value, mask, past, grad, row, channel, channels, plane, exists)
            loaded += ((row * channels + channel, exists, found),)
        for within in tl.static_range(UNROLL):
            at, exists, (added, exponent, g_v, g_k, k, v, before, there) = loaded[within]
            future, kept = tl.where(there, tl.exp(e + k), zeros), tl.where(there, tl.exp(e + before[2] + w), zeros)
            sum_w += kept * (n * before[0] + d * before[1])
            sum_u += g_k
            tl.store(grads[0] + at, (g_k + future * (n * v + d)).to(grads[0].dtype.element_ty), exists)
            tl.store(grads[1] + at, (g_v + future * n).to(grads[1].dtype.element_ty), exists)
            n, d, e = join((n, d, e), tl.where(there, w, zeros), added, exponent)
    tl.store(sums + own, sum_w, inside)
    tl.store(sums + batches * n_chunks * channels + own, sum_u, inside)
