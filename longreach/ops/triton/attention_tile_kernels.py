"""What the kernels of attention know of a tile: who is in it, which scores they have, and who may see whom.

The rule is that of longreach.ops.attention and AttentionMask; scores are times log2(e), so that their exponentials are
powers of two.  Queries and keys have either axis of a tile; what is per query or per key is a column or a row of it.

Axes: b batch, h query heads, g key-value heads, l queries, m keys, e and f widths.
"""

from typing import Any, NamedTuple, no_type_check

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


class Queries(NamedTuple):
    """Of each query of a tile; None for what the call does not have."""

    index: Any
    position: Any
    segment: Any
    slope: Any
    noise: Any
    bias: Any
    """Where its row of the bias begins."""


class Keys(NamedTuple):
    """Of each key of a tile; None for what the call does not have."""

    index: Any
    position: Any
    segment: Any
    real: Any
    noise: Any
    bias: Any
    """How far into a row of the bias it is."""


@triton.jit
@no_type_check
def scramble(x):
    """As longreach.ops.attention_dropout.scramble, of integers without sign."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
@no_type_check
def queries_at(index, batch, head, given, terms, bias_strides, sizes):
    """Queries `index` of `head`; indices beyond the last have what that one has."""
    n_queries, n_keys, n_heads, _ = sizes
    last = tl.minimum(index, n_queries - 1)
    position, segment, slope, noise, bias = index + (n_keys - n_queries), None, None, None, None
    if given.query_position is not None:
        position = tl.load(given.query_position + batch * n_queries + last).to(tl.int32)
    if given.query_segment is not None:
        segment = tl.load(given.query_segment + batch * n_queries + last)
    if terms.slopes is not None:
        slope = tl.load(terms.slopes + head).to(tl.float32) * LOG2_E
    if terms.seed is not None:
        row = (batch * n_heads + head) * n_queries + last
        noise = scramble(row.to(tl.uint32)) ^ scramble(tl.load(terms.seed + 0 * last).to(tl.uint32))
    if terms.bias is not None:
        bias = terms.bias + batch * bias_strides[0] + head * bias_strides[1] + last.to(tl.int64) * bias_strides[2]
    return Queries(index, position, segment, slope, noise, bias)


@triton.jit
@no_type_check
def keys_at(index, batch, given, terms, bias_strides, sizes):
    """Keys `index`; indices beyond the last have what that one has."""
    n_keys = sizes[1]
    last = tl.minimum(index, n_keys - 1)
    position, segment, real, noise, bias = index, None, None, None, None
    if given.key_position is not None:
        position = tl.load(given.key_position + batch * n_keys + last).to(tl.int32)
    if given.key_segment is not None:
        segment = tl.load(given.key_segment + batch * n_keys + last)
    if given.key_mask is not None:
        real = tl.load(given.key_mask + batch * n_keys + last) != 0
    if terms.seed is not None:
        noise = scramble((-1 - index).to(tl.uint32))
    if terms.bias is not None:
        bias = last.to(tl.int64) * bias_strides[3]
    return Keys(index, position, segment, real, noise, bias)


@triton.jit
@no_type_check
def scores_of(products, queries, keys, terms, sizes, MASKED: tl.constexpr, C: tl.constexpr):
    """The scores of a tile times log2(e), -inf where a query may not see a key, and what a soft-cap multiplies."""
    bounded = products
    if terms.softcap is None:
        scores = products * (terms.scale * LOG2_E)
    else:
        bounded = hyperbolic_tangent(products * (terms.scale / terms.softcap))
        scores = bounded * (terms.softcap * LOG2_E)
    distance = queries.position - keys.position
    if terms.slopes is not None:
        scores -= queries.slope * tl.abs(distance).to(tl.float32)
    if terms.bias is not None:
        scores += tl.load(queries.bias + keys.bias).to(tl.float32) * LOG2_E
    if MASKED:
        window = sizes[3]
        seen = (tl.abs(distance) < window) & (keys.index < sizes[1])
        if C.CAUSAL:
            seen = seen & (distance >= 0)
        if keys.real is not None:
            seen = seen & keys.real
        if keys.segment is not None:
            seen = seen & (queries.segment == keys.segment)
        scores = tl.where(seen, scores, float("-inf"))
    return scores, bounded


@triton.jit
@no_type_check
def hyperbolic_tangent(x):
    """Exact to rounding; near zero, where 1 - 2 / (e^2x + 1) is not, the polynomial of Cephes (Moshier 1989)."""
    square = x * x
    series = 2.06390887954e-2 - 5.70498872745e-3 * square
    series = 1.33314422036e-1 + square * (square * series - 5.37397155531e-2)
    near = x + x * square * (square * series - 3.33332819422e-1)
    far = 1.0 - 2.0 / (tl.exp2(tl.minimum(tl.abs(x), 20.0) * (2.0 * LOG2_E)) + 1.0)
    return tl.where(square < 0.390625, near, tl.where(x < 0, -far, far))


@triton.jit
@no_type_check
def kept(queries, keys, terms):
    """Which weights are not dropped, the same as everywhere (longreach.ops.attention_dropout)."""
    return scramble(queries.noise ^ keys.noise).to(tl.int32, bitcast=True) >= terms.threshold


@triton.jit
@no_type_check
def fetch(
    pointer, index, stride, length,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, CHECKED: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Rows `index` of a matrix of `length` rows, padded with zeros to BLOCK columns; CHECKED if some may not exist."""
    column = tl.arange(0, BLOCK)
    if TRANSPOSED:
        index, column = index[None, :], column[:, None]
    else:
        index, column = index[:, None], column[None, :]
    pointers = pointer + index.to(tl.int64) * stride + column
    if CHECKED:
        block = tl.load(pointers, mask=(index < length) & (column < WIDTH), other=0.0)
    elif WIDTH != BLOCK:
        block = tl.load(pointers, mask=column < WIDTH, other=0.0)
    else:
        block = tl.load(pointers)
    return block


@triton.jit
@no_type_check
def reach(low, high, before, after, length, BLOCK: tl.constexpr):
    """Where positions `low` to `high` can see something, of 0 to `length`, if each sees so far before and after it.

    Returned are start <= inner <= outer and stop: all of them see all from inner to outer, which are whole blocks.
    """
    start = tl.maximum(low - before, 0) // BLOCK * BLOCK
    stop = tl.maximum(tl.minimum(high + after + 1, length), 0)
    inner = tl.maximum(tl.cdiv(tl.maximum(high - before, 0), BLOCK) * BLOCK, start)
    outer = tl.maximum(tl.minimum(low + after + 1, length), 0) // BLOCK * BLOCK
    return start, inner, tl.maximum(inner, outer), stop
