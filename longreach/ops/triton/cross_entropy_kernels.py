"""Kernels of the fused loss.  A program has a block of positions and walks over words, or the other way round, a tile
of BM positions and BN words at a time.  All make the logits of a tile in the same way, in steps of BK along the width,
so that softmax meets its own sums to the last bit: where one word has nearly all of it, a rounding would show.

The width is in units of UNIT elements, so that the compiler knows what rows divide by.
"""

from typing import no_type_check

import triton
import triton.language as tl

from longreach.ops.triton import cross_entropy as launcher
from longreach.ops.triton.products import product, rounded

UNIT = tl.constexpr(launcher.UNIT)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
@no_type_check
def fetch(matrix, row, column, n_rows, width):
    """A block of a matrix without gaps, zero where it has ended."""
    return tl.load(matrix + row.to(tl.int64) * width + column, (row < n_rows) & (column < width), 0.0)


@triton.jit
@no_type_check
def logits_of(hidden, weight, bias, position, word, n_positions, n_words, width, BM: tl.constexpr, BN: tl.constexpr,
              BK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Of a tile."""
    total = tl.zeros([BM, BN], tl.float32)
    for first in range(0, width, BK):
        k = first + tl.arange(0, BK)
        rows = fetch(hidden, position[:, None], k[None, :], n_positions, width)
        columns = fetch(weight, word[None, :], k[:, None], n_words, width)
        total = product(rows, columns, total, PRECISION)
    if bias is not None:
        total += tl.load(bias + word, word < n_words, 0.0).to(tl.float32)[None, :]
    return total


@triton.jit
@no_type_check
def place(n_own, n_other, tiles_each, OWN: tl.constexpr, OTHER: tl.constexpr):
    """Of the program: what it has, its part of the rest, and from where to where that is.

    Programs that run together walk over the same part, which the cache keeps for them.
    """
    blocks = tl.cdiv(n_own, OWN)
    own, part = tl.program_id(0) % blocks * OWN + tl.arange(0, OWN), tl.program_id(0) // blocks
    return own, part, part * tiles_each * OTHER, tl.minimum((part + 1) * tiles_each * OTHER, n_other)


RUNTIME = ["bias", "target", "n_positions", "n_words", "width", "tiles_each"]
"""Arguments whose values and alignment compile nothing anew."""


@triton.jit(do_not_specialize=RUNTIME)
@no_type_check
def sums(
    hidden, weight, bias, target, maxima, totals, targets, n_positions, n_words, width, tiles_each,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of each position, by a part of the words, (parts, positions): the maximum of the logits, the sum of exponentials
    that goes with it, and the target's logit, zero where that is in another part."""
    width *= UNIT
    position, part, start, stop = place(n_positions, n_words, tiles_each, BM, BN)
    wanted = tl.load(target + position, position < n_positions, -1).to(tl.int32)
    maximum = tl.full([BM], float("-inf"), tl.float32)
    total, picked = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    for first in range(start, stop, BN):
        word = first + tl.arange(0, BN)
        logits = logits_of(hidden, weight, bias, position, word, n_positions, n_words, width, BM, BN, BK, PRECISION)
        logits = tl.where(word[None, :] < n_words, logits, float("-inf"))
        highest = tl.maximum(maximum, tl.max(logits, 1))
        shift = tl.where(highest == float("-inf"), 0.0, highest)  # a bias of minus infinity hides a word
        weights = tl.exp2((logits - shift[:, None]) * LOG2_E)
        total = total * tl.exp2((maximum - shift) * LOG2_E) + tl.sum(weights, 1)
        picked += tl.sum(tl.where(word[None, :] == wanted[:, None], logits, 0.0), 1)
        maximum = highest
    own, exists = part.to(tl.int64) * n_positions + position, position < n_positions
    tl.store(maxima + own, maximum, exists)
    tl.store(totals + own, total, exists)
    tl.store(targets + own, picked, exists)


@triton.jit
@no_type_check
def gradient_of_logits(logits, position, word, target, kept, grad, n_positions, n_words):
    """grad (softmax - [word = target]) where there is a position and a word, zero where the target is ignored."""
    exists = position < n_positions
    wanted = tl.load(target + position, exists, -1).to(tl.int32)[:, None]
    maximum = tl.load(kept + position, exists, 0.0)[:, None]
    inverse = tl.load(kept + n_positions + position, exists, 0.0)[:, None]
    softmax = tl.exp2((logits - maximum) * LOG2_E) * inverse
    difference = tl.where(word[None, :] == wanted, softmax - 1.0, softmax)
    difference *= tl.load(grad + position, exists, 0.0)[:, None]
    return tl.where((wanted >= 0) & (word[None, :] < n_words), difference, 0.0)


@triton.jit
@no_type_check
def add_product(found, difference, other, own, column, n_own, n_other, width, started, BK: tl.constexpr,
                PRECISION: tl.constexpr):  # fmt: skip
    """found += difference other, for all of the width; or = where nothing has been `started`."""
    row = own.to(tl.int64)[:, None] * width
    for first in range(0, width, BK):
        k = (first + tl.arange(0, BK))[None, :]
        inside = (own < n_own)[:, None] & (k < width)
        before = tl.load(found + row + k, inside & started, 0.0)
        block = fetch(other, column[:, None], k, n_other, width)
        tl.store(found + row + k, product(difference, block, before, PRECISION), inside)


@triton.jit(do_not_specialize=RUNTIME)
@no_type_check
def gradient_of_hidden(
    hidden, weight, bias, target, kept, grad, found, n_positions, n_words, width, tiles_each,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """By a part of the words, (parts, positions, width).  It is too wide for registers and grows, tile by tile, where
    it is stored; nobody else writes there."""
    width *= UNIT
    position, part, start, stop = place(n_positions, n_words, tiles_each, BM, BN)
    found += part.to(tl.int64) * n_positions * width
    for first in range(start, stop, BN):
        word, started = first + tl.arange(0, BN), (position * 0 + first > start)[:, None]
        logits = logits_of(hidden, weight, bias, position, word, n_positions, n_words, width, BM, BN, BK, PRECISION)
        difference = gradient_of_logits(logits, position, word, target, kept, grad, n_positions, n_words)
        difference = rounded(difference, hidden.dtype.element_ty)
        add_product(found, difference, weight, position, word, n_positions, n_words, width, started, BK, PRECISION)
        tl.debug_barrier()  # another thread may read in the next round what this one has written


@triton.jit(do_not_specialize=RUNTIME)
@no_type_check
def gradient_of_weight(
    hidden, weight, bias, target, kept, grad, found, bias_found, n_positions, n_words, width, tiles_each,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """In the same way by a part of the positions, (parts, words, width), and that of a bias, (parts, words)."""
    width *= UNIT
    word, part, start, stop = place(n_words, n_positions, tiles_each, BN, BM)
    found += part.to(tl.int64) * n_words * width
    bias_sum = tl.zeros([BN], tl.float32)
    for first in range(start, stop, BM):
        position, started = first + tl.arange(0, BM), (word * 0 + first > start)[:, None]
        logits = logits_of(hidden, weight, bias, position, word, n_positions, n_words, width, BM, BN, BK, PRECISION)
        difference = gradient_of_logits(logits, position, word, target, kept, grad, n_positions, n_words)
        bias_sum += tl.sum(difference, 0)
        difference = tl.trans(rounded(difference, hidden.dtype.element_ty))
        add_product(found, difference, hidden, word, position, n_words, n_positions, width, started, BK, PRECISION)
        tl.debug_barrier()
    tl.store(bias_found + part.to(tl.int64) * n_words + word, bias_sum, word < n_words)
