"""The memory of attention while it decodes: keys and values of every position so far, appended to without copying them.

The cache is a value: nothing in it is ever changed, and an older cache stays usable next to its successors, with which
it shares almost everything.  It is structured like a binary counter.  The newest positions, fewer than TAIL, are the
tail, which each step copies; whenever it is full it becomes a block, and blocks of equal size are joined, so that the
sizes of blocks are the binary digits of the length: O(log length) blocks, and each position is copied O(log length)
times in all.  With a sliding window blocks stop growing at a quarter of it, and one that has left it is dropped.

The shape of a cache depends only on how many positions were appended, not on how they were cut into chunks.

Axes: b batch, g key-value heads, h query heads (a multiple of g), l queries, m keys, e key width, f value width.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from longreach.ops.attention_mask import AttentionMask
from longreach.ops.attention_step import attention_step, attention_step_refuses

TAIL = 64


class KeyValueBlock(NamedTuple):
    """Some successive positions."""

    key: Float[Tensor, "b g m e"]
    value: Float[Tensor, "b g m f"]
    position: Int[Tensor, "b m"]
    """How many real positions came before this one in its row, or -1 for padding, which nobody sees."""

    @property
    def size(self) -> int:
        """How many positions there are, padding included."""
        return self.key.shape[2]


class KeyValueCache(NamedTuple):
    """Everything that later positions may attend to."""

    blocks: tuple[KeyValueBlock, ...]
    tail: KeyValueBlock
    n_read: Int[Tensor, " b"]
    """How many real positions each row has read, dropped ones included: the position of its next one."""


def empty_cache(
    key: Float[Tensor, "b g 0 e"],
    value: Float[Tensor, "b g 0 f"],
) -> KeyValueCache:
    """A cache that has read nothing; the empty tensors give the sizes, the dtype and the device."""
    none = torch.zeros(key.shape[0], 0, dtype=torch.int64, device=key.device)
    return KeyValueCache((), KeyValueBlock(key, value, none), none.sum(1))


def next_positions(cache: KeyValueCache, length: int, mask: Bool[Tensor, "b l"] | None = None) -> Int[Tensor, "b l"]:
    """The positions of the next `length` entries of every row; where `mask` is False there is padding, at -1."""
    if mask is None:
        return cache.n_read[:, None] + torch.arange(length, device=cache.n_read.device)
    return torch.where(mask, cache.n_read[:, None] + mask.cumsum(1) - 1, -1)


def append(cache: KeyValueCache, new: KeyValueBlock, window: int | None = None) -> KeyValueCache:
    """The cache after `new`; amortised O(log length) copies of each position.

    Queries among the new positions see further back than the next one does: attend to `parts` first, then append.
    """
    sizes = _block_sizes(sum(part.size for part in parts(cache, new)), window)
    shared = 0
    while shared < min(len(sizes), len(cache.blocks)) and cache.blocks[shared].size == sizes[shared]:
        shared += 1
    blocks, rest = list(cache.blocks[:shared]), join((*cache.blocks[shared:], cache.tail, new))
    start = 0
    for size in sizes[shared:]:
        blocks.append(_copy(rest, start, start + size))
        start += size
    tail = _copy(rest, start, rest.size) if start else rest
    count = cache.n_read + (new.position >= 0).sum(1)
    while window is not None and blocks and bool((blocks[0].position.amax(1) <= count - window).all()):
        blocks.pop(0)
    return KeyValueCache(tuple(blocks), tail, count)


def parts(cache: KeyValueCache, new: KeyValueBlock) -> tuple[KeyValueBlock, ...]:
    """The cache and what comes next, oldest first."""
    return (*cache.blocks, cache.tail, new)


def join(blocks: Sequence[KeyValueBlock]) -> KeyValueBlock:
    """Successive blocks as one; copies them."""
    key, value, position = zip(*blocks, strict=True)
    return KeyValueBlock(torch.cat(key, dim=2), torch.cat(value, dim=2), torch.cat(position, dim=1))


def attend_to_parts(
    query: Float[Tensor, "b h l e"],
    query_position: Int[Tensor, "b l"],
    parts: Sequence[KeyValueBlock],
    *,
    window: int | None = None,
    alibi_slopes: Float[Tensor, " h"] | None = None,
    visible: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Float[Tensor, "b h l f"]:
    """Causal attention of a few queries to keys that lie in several blocks, without joining them.

    The same as `attention` on the joined blocks; `visible` says of positions (b, l, 1) of queries and (b, 1, m) of keys
    which pairs may meet, if not all (b, l, m).  O(l m) time and memory; the softmax is float32 or wider.
    """
    if visible is None and not attention_step_refuses(query, parts):
        return attention_step(query, query_position, parts, window, alibi_slopes)
    n_groups, scale = parts[0].key.shape[1], query.shape[-1] ** -0.5
    grouped = (query * scale).unflatten(1, (n_groups, -1)).flatten(2, 3)  # (b, g, r l, e)
    position = torch.cat([part.position for part in parts], dim=1)
    rule = AttentionMask(True, window, position >= 0, None, None, query_position, position)
    scores = torch.cat([grouped @ part.key.mT for part in parts], dim=-1)
    scores = scores.to(torch.promote_types(query.dtype, torch.float32)).view(*query.shape[:3], -1)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.to(scores.dtype)[:, None, None] * rule.distance()[:, None]
    allowed = rule.allowed()
    if visible is not None:
        allowed = allowed & visible(query_position[:, :, None], position[:, None])
    scores = scores.masked_fill(~allowed[:, None], -torch.inf)
    blind = (scores == -torch.inf).all(-1, keepdim=True)  # only padding sees nothing
    weights = scores.masked_fill(blind, 0.0).softmax(-1).to(query.dtype)
    split = weights.view(*grouped.shape[:3], -1).split([part.size for part in parts], dim=-1)
    values = [weight @ part.value for weight, part in zip(split, parts, strict=True)]
    return sum(values[1:], values[0]).view(*query.shape[:3], -1)


def _block_sizes(length: int, window: int | None) -> list[int]:
    """The sizes of the blocks that hold all of `length` positions but the tail: the binary digits of length / TAIL."""
    sizes = []
    if window is not None:
        largest = TAIL << max(0, (window // (4 * TAIL)).bit_length() - 1)
        sizes = [largest] * (length // largest)
        length %= largest
    count = length // TAIL
    return sizes + [TAIL << digit for digit in reversed(range(count.bit_length())) if count >> digit & 1]


def _copy(block: KeyValueBlock, start: int, stop: int) -> KeyValueBlock:
    """A part of a block in memory of its own, so that what is dropped later is freed."""
    return KeyValueBlock(
        block.key[:, :, start:stop].clone(),
        block.value[:, :, start:stop].clone(),
        block.position[:, start:stop].clone(),
    )
