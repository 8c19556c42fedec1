"""The forward pass of attention in Triton: FlashAttention-2 (Dao 2023, https://arxiv.org/abs/2307.08691).

A program has BM queries of a head and walks over the keys that some of them may see, BN at a time, with a running
maximum, a running sum and a running result, as longreach.ops.attention_tiled does; for the gradients it leaves the
maximum and the inverse sum, two numbers for the same reason as there.  Tiles in which everyone sees everyone are not
masked.

With few queries (SPLIT) a program has all queries of all heads that share a key-value head, and a part of the keys;
`combine` puts the parts together.

Axes: b batch, h query heads, g key-value heads, l queries, m keys, e and f widths.
"""

from typing import no_type_check

import triton
import triton.language as tl

from longreach.ops.triton.attention_tile_kernels import fetch, kept, keys_at, queries_at, reach, scores_of
from longreach.ops.triton.products import product

STRIDES = [f"{name}_{axis}" for name in ("query", "key", "value") for axis in ("batch", "head", "row")]
BIAS_STRIDES = ["bias_batch", "bias_head", "bias_row", "bias_column"]
SIZES = ["n_queries", "n_keys", "n_heads", "n_groups", "window"]
RUNTIME = [*STRIDES, *BIAS_STRIDES, *SIZES, "n_splits", "n_total"]
"""Integers for which nothing is compiled anew."""


@triton.jit
@no_type_check
def attend(state, start, stop, fixed, MASKED: tl.constexpr, C: tl.constexpr):
    """Maximum, sum and result after keys `start` to `stop`."""
    query, queries, batch, key, key_row, value, value_row, given, terms, bias_strides, sizes = fixed
    maximum, total, result = state
    for first in range(start, stop, C.BN):
        index = first + tl.arange(0, C.BN)
        block = fetch(key, index, key_row, sizes[1], C.WIDTH, C.E, MASKED, True)
        products = product(query, block, tl.zeros([C.BM, C.BN], tl.float32), C.PRECISION)
        keys = keys_at(index[None, :], batch, given, terms, bias_strides, sizes)
        scores, _ = scores_of(products, queries, keys, terms, sizes, MASKED, C)
        highest = tl.maximum(maximum, tl.max(scores, 1))
        shift = tl.where(highest == float("-inf"), 0.0, highest)  # while nothing is visible
        weights, rescale = tl.exp2(scores - shift[:, None]), tl.exp2(maximum - shift)
        total = total * rescale + tl.sum(weights, 1)
        if terms.seed is not None:
            weights = tl.where(kept(queries, keys, terms), weights, 0.0)
        block = fetch(value, index, value_row, sizes[1], C.VALUE_WIDTH, C.F, MASKED, False)
        result = product(weights.to(block.dtype), block, result * rescale[:, None], C.PRECISION)
        maximum = highest
    return maximum, total, result


@triton.jit
@no_type_check
def place(n_splits, n_queries, n_heads, n_groups, C: tl.constexpr):
    """Of the program: part of the keys, batch, head of each row, its group, index of each row, and if it exists."""
    program, repeats = tl.program_id(0) // n_splits, n_heads // n_groups
    n_outer, n_rows = n_heads, n_queries
    if C.SPLIT:
        n_outer, n_rows = n_groups, repeats * n_queries
    n_blocks = tl.cdiv(n_rows, C.BM)
    block, outer = program % n_blocks, program // n_blocks
    if C.CAUSAL and not C.SPLIT:
        block = n_blocks - 1 - block  # the longest ones first
    row = block * C.BM + tl.arange(0, C.BM)
    exists, batch = row < n_rows, (outer // n_outer).to(tl.int64)
    head, index = outer % n_outer + 0 * row, row
    group = outer % n_outer // repeats
    if C.SPLIT:
        row, group = tl.minimum(row, n_rows - 1), outer % n_outer
        head, index = group * repeats + row // n_queries, row % n_queries
    return block, batch, head, group, index, exists


@triton.jit
@no_type_check
def extent(block, batch, given, sizes, n_splits, C: tl.constexpr):
    """Of the program's keys, the first, those that need no mask, and the end: see `reach`."""
    n_queries, n_keys, _, window = sizes
    low, high = n_keys - n_queries, n_keys - 1
    if not C.SPLIT:
        low, high = low + block * C.BM, tl.minimum(low + (block + 1) * C.BM - 1, high)
    start, inner, outer, stop = reach(low, high, window - 1, 0 if C.CAUSAL else window - 1, n_keys, C.BN)
    if given.ranges is not None:
        ranges = given.ranges + (batch * tl.cdiv(n_queries, C.BM) + block) * 2
        start, stop = tl.load(ranges), tl.load(ranges + 1)
    elif given.query_position is not None:
        start, stop = start * 0, n_keys
    if C.SPLIT:
        length = tl.cdiv(tl.cdiv(stop - start, C.BN), n_splits) * C.BN
        start += tl.program_id(0) % n_splits * length
        stop = tl.minimum(start + length, stop)
    return start, inner, outer, stop


@triton.jit
@no_type_check
def store(state, row, exists, output, sums, distance, terms, C: tl.constexpr):
    """The results of rows that exist, and their sums of exponentials: maximum, and inverse sum (of a part: sum)."""
    maximum, total, result = state
    blind = total == 0.0
    inverse = 1.0 / tl.where(blind, 1.0, total)
    wide = tl.arange(0, C.F)[None, :]
    target = output + row.to(tl.int64)[:, None] * C.VALUE_WIDTH + wide
    result = result * (terms.keep * inverse)[:, None]
    tl.store(target, result, mask=exists[:, None] & (wide < C.VALUE_WIDTH))
    if not C.SPLIT:
        maximum, total = tl.where(blind, 0.0, maximum), tl.where(blind, 0.0, inverse)
    tl.store(sums + row, maximum, mask=exists)
    tl.store(sums + distance + row, total, mask=exists)


@triton.jit(do_not_specialize=RUNTIME)
@no_type_check
def forward(
    tensors, given, terms, query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head,
    value_row, bias_batch, bias_head, bias_row, bias_column, n_queries, n_keys, n_heads, n_groups, window, n_splits,
    n_total, C: tl.constexpr,
):  # fmt: skip
    """Writes the results and sums; with SPLIT, of each part, in float32, the parts first."""
    query, key, value, output, sums = tensors
    bias_strides, sizes = (bias_batch, bias_head, bias_row, bias_column), (n_queries, n_keys, n_heads, window)
    block, batch, head, group, index, exists = place(n_splits, n_queries, n_heads, n_groups, C)
    start, inner, outer, stop = extent(block, batch, given, sizes, n_splits, C)
    queries = queries_at(index[:, None], batch, head[:, None], given, terms, bias_strides, sizes)
    rows = query + (batch * query_batch + head.to(tl.int64) * query_head + index.to(tl.int64) * query_row) * C.UNIT
    wide = tl.arange(0, C.E)[None, :]
    query = tl.load(rows[:, None] + wide, mask=exists[:, None] & (wide < C.WIDTH), other=0.0)
    key += (batch * key_batch + group.to(tl.int64) * key_head) * C.UNIT
    value += (batch * value_batch + group.to(tl.int64) * value_head) * C.UNIT
    fixed = query, queries, batch, key, key_row * C.UNIT, value, value_row * C.UNIT, given, terms, bias_strides, sizes
    zeros = tl.zeros([C.BM], tl.float32)
    state = zeros + float("-inf"), zeros, tl.zeros([C.BM, C.F], tl.float32)
    if C.PLAIN:
        state = attend(state, start, tl.minimum(inner, stop), fixed, True, C)
        state = attend(state, inner, outer, fixed, False, C)
        state = attend(state, outer, stop, fixed, True, C)
    else:
        state = attend(state, start, stop, fixed, True, C)
    row = (batch * n_heads + head) * n_queries + index
    row += (tl.program_id(0) % n_splits).to(tl.int64) * n_total
    store(state, row, exists, output, sums, (batch * 0 + n_splits) * n_total, terms, C)


@triton.jit(do_not_specialize=RUNTIME)
@no_type_check
def combine(parts, part_sums, output, sums, n_splits, n_total, WIDTH: tl.constexpr, F: tl.constexpr):
    """One row: the parts weighted by their shares of the sum of exponentials."""
    row, wide = tl.program_id(0).to(tl.int64), tl.arange(0, F)
    step, maximum = row * 0 + n_total, tl.load(part_sums + row)
    for part in range(1, n_splits):
        maximum = tl.maximum(maximum, tl.load(part_sums + row + part * step))
    shift = tl.where(maximum == float("-inf"), 0.0, maximum)
    total, result = shift * 0.0, tl.zeros([F], tl.float32)
    for part in range(n_splits):
        place = row + part * step
        share = tl.exp2(tl.load(part_sums + place) - shift) * tl.load(part_sums + n_splits * step + place)
        total += share
        result += share * tl.load(parts + place * WIDTH + wide, mask=wide < WIDTH, other=0.0)
    blind = total == 0.0
    inverse = 1.0 / tl.where(blind, 1.0, total)
    tl.store(output + row * WIDTH + wide, result * inverse, mask=wide < WIDTH)
    tl.store(sums + row, shift)
    tl.store(sums + step + row, tl.where(blind, 0.0, inverse))
