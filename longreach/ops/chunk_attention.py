"""Relative attention in chunks: positions 0 .. c-1 of a row attend to each other, so do c .. 2c-1, and so on.

    attend_in_chunks       whole sequences, O(l c) time
    attend_in_next_chunks  what comes after a key-value cache, which holds the keys and values of the present chunk

Chunks count the real positions of a row: padding is left out wherever it lies, and rows may be at different places of
their chunks.  Without a chunk size the whole sequence is one chunk, and the cache is all of the past.
(Mega, https://arxiv.org/abs/2209.10655, section 3.5)

Axes: b batch, l length, m keys, e query and key width, f value width, r distances.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from longreach.ops.attention_mask import AttentionMask
from longreach.ops.key_value_cache import KeyValueBlock, KeyValueCache, append, join, next_positions, parts
from longreach.ops.modal import padding_first
from longreach.ops.relative_attention import Weighting, relative_attention, relative_weights


class ChunkRule(NamedTuple):
    """What kind of attention it is."""

    chunk_size: int | None
    causal: bool
    weighting: Weighting
    bias: Callable[[int], Float[Tensor, " r"]]
    """The bias of all distances of less than so many positions, or of more."""
    dropout: float = 0.0
    dropout_seed: Int[Tensor, ""] | None = None


def attend_in_chunks(
    query: Float[Tensor, "b l e"],
    key: Float[Tensor, "b l e"],
    value: Float[Tensor, "b l f"],
    rule: ChunkRule,
    mask: Bool[Tensor, "b l"] | None = None,
) -> Float[Tensor, "b l f"]:
    """Attend within every chunk, O(l c) time and, for long sequences, O(l) memory."""
    if mask is None:
        return _attend_in_grid(query, key, value, rule, None)
    order = padding_first(~mask)  # what is real comes first
    query, key, value = (_reorder(x, order) for x in (query, key, value))
    y = _attend_in_grid(query, key, value, rule, mask.gather(1, order))
    return _reorder(y, order.argsort(dim=1))


def attend_in_next_chunks(
    query: Float[Tensor, "b l e"],
    key: Float[Tensor, "b l e"],
    value: Float[Tensor, "b l f"],
    rule: ChunkRule,
    cache: KeyValueCache,
    mask: Bool[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b l f"], KeyValueCache]:
    """Attend, causally, to the cache and to what is new; and the cache after it.  O(l c) time."""
    dtype = cache.tail.key.dtype
    new = KeyValueBlock(key[:, None].to(dtype), value[:, None].to(dtype), next_positions(cache, query.shape[1], mask))
    old = sum(part.size for part in (*cache.blocks, cache.tail))
    if new.size == 1 and not rule.dropout:
        y = _attend_one(query, new.position, parts(cache, new), rule)
    elif old == 0:  # every row is at the beginning of a chunk
        y = attend_in_chunks(query, key, value, rule, mask)
    elif rule.chunk_size is None:
        whole = join(parts(cache, new))
        seen = AttentionMask(True, None, whole.position >= 0, None, None, new.position, whole.position)
        y = _attend(query, whole.key[:, 0], whole.value[:, 0], rule, seen)
    else:  # the present chunk once more from its beginning, with queries that nobody asks for
        whole = join(parts(cache, new))
        present = whole.position >= _chunk_start(cache.n_read, rule)[:, None]
        y = attend_in_chunks(pad(query, (0, 0, old, 0)), whole.key[:, 0], whole.value[:, 0], rule, present)[:, old:]
    return y, _remember(cache, new, rule, mask)


def _attend_in_grid(query: Tensor, key: Tensor, value: Tensor, rule: ChunkRule, mask: Tensor | None) -> Tensor:
    """Chunks are rows of a grid; `mask` is True at the first keys of each sequence."""
    length = query.shape[1]
    size = min(rule.chunk_size or length, length)
    missing = -length % size
    if missing and mask is None and not rule.causal:
        mask = torch.ones_like(query[..., 0], dtype=torch.bool)
    query, key, value = (pad(x, (0, 0, 0, missing)).unflatten(1, (-1, size)).flatten(0, 1) for x in (query, key, value))
    if mask is not None:
        mask = pad(mask, (0, missing)).unflatten(1, (-1, size)).flatten(0, 1)
    y = _attend(query, key, value, rule, AttentionMask(rule.causal, key_mask=mask))
    return y.unflatten(0, (-1, (length + missing) // size)).flatten(1, 2)[:, :length]


def _attend(query: Tensor, key: Tensor, value: Tensor, rule: ChunkRule, mask: AttentionMask) -> Tensor:
    return relative_attention(
        query,
        key,
        value,
        rule.bias(key.shape[1]),
        mask,
        weighting=rule.weighting,
        dropout=rule.dropout,
        dropout_seed=rule.dropout_seed,
    )


def _attend_one(query: Tensor, position: Tensor, seen: tuple[KeyValueBlock, ...], rule: ChunkRule) -> Tensor:
    """One query to keys that lie in several blocks, without joining them."""
    start, key_position = _chunk_start(position, rule), torch.cat([part.position for part in seen], dim=1)
    mask = AttentionMask(True, None, key_position >= start, None, None, position - start, key_position - start)
    products = torch.cat([query @ part.key[:, 0].mT for part in seen], dim=-1)
    weights = relative_weights(products, rule.bias(products.shape[-1]), mask, rule.weighting)
    split = weights.to(seen[0].value.dtype).split([part.size for part in seen], dim=-1)
    return torch.stack([weight @ part.value[:, 0] for weight, part in zip(split, seen, strict=True)]).sum(0)


def _chunk_start(position: Tensor, rule: ChunkRule) -> Tensor:
    """Where the chunk begins that `position` lies in."""
    return torch.zeros_like(position) if rule.chunk_size is None else position // rule.chunk_size * rule.chunk_size


def _remember(cache: KeyValueCache, new: KeyValueBlock, rule: ChunkRule, mask: Tensor | None) -> KeyValueCache:
    """The cache after `new`, without what lies in chunks that every row has finished."""
    if rule.chunk_size is None:
        return append(cache, new)
    count = cache.n_read + (new.position >= 0).sum(1)
    if mask is not None:
        order = padding_first(mask)
        key, value = (_reorder(x[:, 0], order)[:, None] for x in (new.key, new.value))
        new = KeyValueBlock(key, value, new.position.gather(1, order))
    newest = slice(-rule.chunk_size, None)
    new = KeyValueBlock(new.key[:, :, newest], new.value[:, :, newest], new.position[:, newest])
    blocks, tail, _ = append(cache, new, window=rule.chunk_size)
    start = _chunk_start(count, rule)[:, None]
    while blocks and not bool((blocks[0].position >= start).any()):
        blocks = blocks[1:]
    if not blocks and not bool((tail.position >= start).any()):
        tail = KeyValueBlock(tail.key[:, :, :0].clone(), tail.value[:, :, :0].clone(), tail.position[:, :0].clone())
    return KeyValueCache(blocks, tail, count)


def _reorder(x: Tensor, order: Tensor) -> Tensor:
    """The positions of `x` (b, l, d) in this order."""
    return x.gather(1, order[..., None].expand_as(x))
