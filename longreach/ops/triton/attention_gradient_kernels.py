"""The backward pass of attention in Triton, without atomics, and so with the same bits every time.

    P = exp(S - max) / sum   dV = (P kept)^T dY     dP = (dY V^T) kept     dS = P (dP - delta)     delta = sum_f dY Y
    dQ = scale dS K          dK = scale dS^T Q

`gradient_of_queries` has BM queries and walks over keys, `gradient_of_keys` has BN keys and walks over the queries of
all heads that share them.  Each makes the scores again: seven products where adding to dQ with atomics takes five.

Axes: b batch, h query heads, g key-value heads, l queries, m keys, e and f widths.
"""

from typing import no_type_check

import triton
import triton.language as tl

from longreach.ops.triton.attention_kernels import RUNTIME, extent, place
from longreach.ops.triton.attention_tile_kernels import fetch, kept, keys_at, queries_at, reach, scores_of
from longreach.ops.triton.products import product


@triton.jit
@no_type_check
def gradient_of_scores(products, gradient, maximum, inverse, delta, queries, keys, terms, sizes,
                       MASKED: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Weights, after dropout but for its factor; gradients of scores before the soft-cap, and after it."""
    scores, bounded = scores_of(products, queries, keys, terms, sizes, MASKED, C)
    weights = tl.exp2(scores - maximum) * inverse
    gradient *= terms.keep
    dropped = weights
    if terms.seed is not None:
        survives = kept(queries, keys, terms)
        gradient, dropped = tl.where(survives, gradient, 0.0), tl.where(survives, weights, 0.0)
    after = weights * (gradient - delta)
    before = after
    if terms.softcap is not None:
        before = after * (1.0 - bounded * bounded)
    return dropped, before, after


@triton.jit
@no_type_check
def add_keys(state, start, stop, fixed, MASKED: tl.constexpr, C: tl.constexpr):
    """The gradients of queries and slopes with what keys `start` to `stop` contribute."""
    query, grad, sums, delta, queries, batch, key, key_row, value, value_row, given, terms, strides, sizes = fixed
    query_grad, slope_grad = state
    for first in range(start, stop, C.BN):
        index = first + tl.arange(0, C.BN)
        keys = keys_at(index[None, :], batch, given, terms, strides, sizes)
        block = fetch(key, index, key_row, sizes[1], C.WIDTH, C.E, MASKED, False)
        products = product(query, tl.trans(block), tl.zeros([C.BM, C.BN], tl.float32), C.PRECISION)
        columns = fetch(value, index, value_row, sizes[1], C.VALUE_WIDTH, C.F, MASKED, True)
        gradient = product(grad, columns, tl.zeros([C.BM, C.BN], tl.float32), C.PRECISION)
        _, before, after = gradient_of_scores(
            products,
            gradient,
            sums[0][:, None],
            sums[1][:, None],
            delta[:, None],
            queries,
            keys,
            terms,
            sizes,
            MASKED,
            C,
        )
        if terms.slopes is not None:
            slope_grad -= tl.sum(after * tl.abs(queries.position - keys.position).to(tl.float32), 1)
        query_grad = product(before.to(block.dtype), block, query_grad, C.PRECISION)
    return query_grad, slope_grad


@triton.jit(do_not_specialize=RUNTIME)
@no_type_check
def gradient_of_queries(
    tensors, given, terms, query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head,
    value_row, bias_batch, bias_head, bias_row, bias_column, n_queries, n_keys, n_heads, n_groups, window, n_splits,
    n_total, C: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of queries, that of the slopes by each query, and delta, for the other kernel."""
    query, key, value, output, sums, grad, delta, query_grad, slope_grad = tensors
    strides, sizes = (bias_batch, bias_head, bias_row, bias_column), (n_queries, n_keys, n_heads, window)
    block, batch, head, group, index, exists = place(n_splits, n_queries, n_heads, n_groups, C)
    start, inner, outer, stop = extent(block, batch, given, sizes, n_splits, C)
    queries = queries_at(index[:, None], batch, head[:, None], given, terms, strides, sizes)
    first = tl.max(head, 0).to(tl.int64)
    query += (batch * query_batch + first * query_head) * C.UNIT
    query = fetch(query, index, query_row * C.UNIT, n_queries, C.WIDTH, C.E, True, False)
    row = (batch * n_heads + first) * n_queries
    grad = fetch(grad + row * C.VALUE_WIDTH, index, C.VALUE_WIDTH, n_queries, C.VALUE_WIDTH, C.F, True, False)
    output = fetch(output + row * C.VALUE_WIDTH, index, C.VALUE_WIDTH, n_queries, C.VALUE_WIDTH, C.F, True, False)
    difference = tl.sum(grad.to(tl.float32) * output.to(tl.float32), 1)
    tl.store(delta + row + index, difference, mask=exists)
    sums = sums_of(sums + row, index, n_total, exists)
    key += (batch * key_batch + group.to(tl.int64) * key_head) * C.UNIT
    value += (batch * value_batch + group.to(tl.int64) * value_head) * C.UNIT
    fixed = (query, grad, sums, difference, queries, batch, key, key_row * C.UNIT, value, value_row * C.UNIT,
             given, terms, strides, sizes)  # fmt: skip
    state = tl.zeros([C.BM, C.E], tl.float32), tl.zeros([C.BM], tl.float32)
    if C.PLAIN:
        state = add_keys(state, start, tl.minimum(inner, stop), fixed, True, C)
        state = add_keys(state, inner, outer, fixed, False, C)
        state = add_keys(state, outer, stop, fixed, True, C)
    else:
        state = add_keys(state, start, stop, fixed, True, C)
    write(query_grad + row * C.WIDTH, index, state[0] * terms.scale, exists, C.WIDTH, C.E)
    if terms.slopes is not None:
        tl.store(slope_grad + row + index, state[1], mask=exists)


@triton.jit
@no_type_check
def sums_of(sums, index, distance, exists):
    """Maximum and inverse sum of each row; such that all weights are zero where there is none."""
    maximum = tl.load(sums + index, mask=exists, other=float("inf"))
    return maximum, tl.load(sums + distance + index, mask=exists, other=0.0)


@triton.jit
@no_type_check
def write(pointer, index, block, exists, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of a matrix without gaps."""
    wide = tl.arange(0, BLOCK)[None, :]
    tl.store(pointer + index.to(tl.int64)[:, None] * WIDTH + wide, block, mask=exists[:, None] & (wide < WIDTH))


@triton.jit
@no_type_check
def add_queries(state, start, stop, fixed, head, MASKED: tl.constexpr, C: tl.constexpr):
    """The gradients of keys and values with what queries `start` to `stop` of one head contribute; tiles are turned."""
    key, value, keys, batch, query, query_row, grad, sums, distance, delta, given, terms, strides, sizes = fixed
    key_grad, value_grad = state
    for first in range(start, stop, C.BM):
        index = first + tl.arange(0, C.BM)
        exists = index < sizes[0]
        maximum, inverse = sums_of(sums, index, distance, exists)
        difference = tl.load(delta + index, mask=exists, other=0.0)
        queries = queries_at(index[None, :], batch, head, given, terms, strides, sizes)
        block = fetch(query, index, query_row, sizes[0], C.WIDTH, C.E, MASKED, False)
        products = product(key, tl.trans(block), tl.zeros([C.BN, C.BM], tl.float32), C.PRECISION)
        rows = fetch(grad, index, C.VALUE_WIDTH, sizes[0], C.VALUE_WIDTH, C.F, MASKED, False)
        gradient = product(value, tl.trans(rows), tl.zeros([C.BN, C.BM], tl.float32), C.PRECISION)
        weights, before, _ = gradient_of_scores(
            products,
            gradient,
            maximum[None, :],
            inverse[None, :],
            difference[None, :],
            queries,
            keys,
            terms,
            sizes,
            MASKED,
            C,
        )
        value_grad = product(weights.to(rows.dtype), rows, value_grad, C.PRECISION)
        key_grad = product(before.to(block.dtype), block, key_grad, C.PRECISION)
    return key_grad, value_grad


@triton.jit(do_not_specialize=RUNTIME)
@no_type_check
def gradient_of_keys(
    tensors, given, terms, query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head,
    value_row, bias_batch, bias_head, bias_row, bias_column, n_queries, n_keys, n_heads, n_groups, window, n_splits,
    n_total, C: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of keys and values."""
    query, key, value, sums, grad, delta, key_grad, value_grad = tensors
    strides, sizes = (bias_batch, bias_head, bias_row, bias_column), (n_queries, n_keys, n_heads, window)
    n_blocks, repeats = tl.cdiv(n_keys, C.BN), n_heads // n_groups
    block, outer = tl.program_id(0) % n_blocks, (tl.program_id(0) // n_blocks).to(tl.int64)
    batch, group = outer // n_groups, outer % n_groups
    index = block * C.BN + tl.arange(0, C.BN)
    keys = keys_at(index[:, None], batch, given, terms, strides, sizes)
    key += (batch * key_batch + group * key_head) * C.UNIT
    value += (batch * value_batch + group * value_head) * C.UNIT
    key = fetch(key, index, key_row * C.UNIT, n_keys, C.WIDTH, C.E, True, False)
    value = fetch(value, index, value_row * C.UNIT, n_keys, C.VALUE_WIDTH, C.F, True, False)
    spans = span(block, batch, given, sizes, C)
    state = tl.zeros([C.BN, C.E], tl.float32), tl.zeros([C.BN, C.F], tl.float32)
    for head in range(group * repeats, (group + 1) * repeats):
        row = (batch * n_heads + head) * n_queries
        rows = query + (batch * query_batch + head * query_head) * C.UNIT
        fixed = (key, value, keys, batch, rows, query_row * C.UNIT, grad + row * C.VALUE_WIDTH, sums + row,
                 n_total, delta + row, given, terms, strides, sizes)  # fmt: skip
        state = walk_queries(state, spans, fixed, head, C)
    row, exists = outer * n_keys, index < n_keys
    write(key_grad + row * C.WIDTH, index, state[0] * terms.scale, exists, C.WIDTH, C.E)
    write(value_grad + row * C.VALUE_WIDTH, index, state[1] * terms.keep, exists, C.VALUE_WIDTH, C.F)


@triton.jit
@no_type_check
def span(block, batch, given, sizes, C: tl.constexpr):
    """Of the queries that may see a block of keys, the first, those that need no mask, and the end: see `reach`."""
    n_queries, n_keys, _, window = sizes
    low, high = block * C.BN, tl.minimum((block + 1) * C.BN, n_keys) - 1
    shift = n_queries - n_keys  # a query's index is its position and this
    before = 0 if C.CAUSAL else window - 1
    start, inner, outer, stop = reach(low + shift, high + shift, before, window - 1, n_queries, C.BM)
    if given.ranges is not None:
        ranges = given.ranges + (batch * tl.cdiv(n_keys, C.BN) + block) * 2
        start, stop = tl.load(ranges), tl.load(ranges + 1)
    return start, inner, outer, stop


@triton.jit
@no_type_check
def walk_queries(state, spans, fixed, head, C: tl.constexpr):
    """All queries of one head."""
    start, inner, outer, stop = spans
    if C.PLAIN:
        state = add_queries(state, start, tl.minimum(inner, stop), fixed, head, True, C)
        state = add_queries(state, inner, outer, fixed, head, False, C)
        state = add_queries(state, outer, stop, fixed, head, True, C)
    else:
        state = add_queries(state, start, stop, fixed, head, True, C)
    return state
