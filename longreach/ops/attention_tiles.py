"""Which tiles of the square of queries and keys hold a pair that may meet, from the extremes of each block alone.

A tile is left out if its extremes prove that no pair in it may meet, and needs no mask if they prove that every pair
may.  What they leave open is masked pair by pair, so a loose bound costs time and never correctness.

Axes: b batch (or 1 where every row is alike), l queries, m keys.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from longreach.ops.attention_mask import AttentionMask

SPAN = 2**22
"""About so many tiles of a row are looked at at once."""


class Tile(NamedTuple):
    """Some queries against some keys."""

    queries: slice
    keys: slice
    partial: bool
    """Whether some of the pairs may not meet."""


class Extremes(NamedTuple):
    """The lowest and the highest value in each block of a row."""

    low: Int[Tensor, "b n_blocks"]
    high: Int[Tensor, "b n_blocks"]

    @classmethod
    def of(cls, x: Shaped[Tensor, "b l"], size: int) -> "Extremes":
        """Cut the rows of `x` in blocks of `size`; the last one may be shorter."""
        last = x.shape[1] - 1
        index = torch.arange(-(-x.shape[1] // size) * size, device=x.device).clamp(max=last)
        return cls(*x.long()[:, index].unflatten(1, (-1, size)).aminmax(dim=2))

    def block(self, index: int) -> "Extremes":
        """Those of one block, with an axis of 1 in place of the blocks."""
        return Extremes(self.low[:, index, None], self.high[:, index, None])

    def cut(self, blocks: slice, axis: int) -> "Extremes":
        """Those of some blocks, with an axis of 1 more."""
        return Extremes(self.low[:, blocks].unsqueeze(axis), self.high[:, blocks].unsqueeze(axis))


def rows_of_tiles(mask: AttentionMask, n_queries: int, n_keys: int, size: int) -> Iterator[tuple[slice, list[Tile]]]:
    """For each block of `size` queries, the tiles in which some of them may see something.

    `mask` has positions.  O(b (l + m)) memory, O(b l m / size^2) time.
    """
    assert mask.query_position is not None
    assert mask.key_position is not None
    query, key = Extremes.of(mask.query_position, size), Extremes.of(mask.key_position, size)
    real = None if mask.key_mask is None else Extremes.of(mask.key_mask, size)
    query_segment, key_segment = (
        None if segment is None else Extremes.of(segment, size) for segment in (mask.query_segment, mask.key_segment)
    )
    for index, start in enumerate(range(0, n_queries, size)):
        possible, certain = _by_distance(mask, query.block(index), key)
        if real is not None:
            possible, certain = possible & (real.high > 0), certain & (real.low > 0)
        if query_segment is not None and key_segment is not None:
            own = query_segment.block(index)
            possible = possible & (own.low <= key_segment.high) & (key_segment.low <= own.high)
            certain = certain & (own.low == key_segment.high) & (own.high == key_segment.low)
        queries = slice(start, min(start + size, n_queries))
        flags = zip(possible.any(0).tolist(), certain.all(0).tolist(), strict=True)
        yield (
            queries,
            [
                Tile(queries, slice(block * size, min((block + 1) * size, n_keys)), not all_meet)
                for block, (some_meet, all_meet) in enumerate(flags)
                if some_meet
            ],
        )


def spans_of_tiles(
    mask: AttentionMask, sizes: tuple[int, int], tile: tuple[int, int], *, of_keys: bool = False
) -> Int[Tensor, "b n_blocks 2"]:
    """For each block of queries (or of keys), from which to before which key (or query) some pair may meet.

    `sizes` are the numbers of queries and keys, `tile` those in a block; `mask` has positions.  O(b (l + m) + SPAN)
    memory, O(b l m / size^2) time, and nothing waits for the device.
    """
    parts = [mask.query_position, mask.key_position, mask.query_segment, mask.key_segment]
    query, key, own, other = (
        None if part is None else Extremes.of(part, tile[index % 2]) for index, part in enumerate(parts)
    )
    assert query is not None
    assert key is not None
    real = None if mask.key_mask is None else Extremes.of(mask.key_mask, tile[1])
    axis, n_blocks = (2, key.low.shape[1]) if of_keys else (1, query.low.shape[1])
    n_others = query.low.shape[1] if of_keys else key.low.shape[1]
    spans, count = [], max(1, SPAN // n_others)
    for start in range(0, n_blocks, count):
        cut = [slice(None), slice(None)]
        cut[axis - 1] = slice(start, start + count)
        rows, columns = query.cut(cut[0], 2), key.cut(cut[1], 1)
        possible, _ = _by_distance(mask, rows, columns)
        if real is not None:
            possible = possible & (real.cut(cut[1], 1).high > 0)
        if own is not None and other is not None:
            rows, columns = own.cut(cut[0], 2), other.cut(cut[1], 1)
            possible = possible & (rows.low <= columns.high) & (columns.low <= rows.high)
        possible = possible.mT if of_keys else possible
        index = torch.arange(n_others, device=possible.device)
        first = torch.where(possible, index, n_others).amin(2)
        last = torch.where(possible, index, -1).amax(2)
        spans.append(torch.stack([first.minimum(last + 1), last + 1], dim=2))
    other_tile, other_size = (tile[0], sizes[0]) if of_keys else (tile[1], sizes[1])
    return (torch.cat(spans, dim=1) * other_tile).clamp(max=other_size)


def _by_distance(mask: AttentionMask, query: Extremes, key: Extremes) -> tuple[Tensor, Tensor]:
    """Whether positions allow some pair, and every pair, of one block of queries and each block of keys."""
    nearest, farthest = query.low - key.high, query.high - key.low
    possible, certain = (torch.ones_like(nearest, dtype=torch.bool) for _ in range(2))
    if mask.causal:
        possible, certain = possible & (farthest >= 0), certain & (nearest >= 0)
    if mask.window is not None:
        possible = possible & (nearest < mask.window) & (farthest > -mask.window)
        certain = certain & (farthest < mask.window) & (nearest > -mask.window)
    return possible, certain
