"""Reformer: attention among positions that hash alike (Kitaev et al. 2020, https://arxiv.org/abs/2001.04451).

    q = x W_q,  v = x W_v,  k = q / |q|                queries and keys are one projection
    c^r_i = argmax [q_i R^r; -q_i R^r]                 bucket of i in round r, by random rotations R^r
    y_i   = sum_j n_ij exp(q_i . k_j) v_j / sum_j n_ij exp(q_i . k_j)        n_ij = rounds in which i sees j

with rotary positions in q and k behind the hash.  In a round, i sees the `window` last positions before it that share
its bucket; without `causal` as many after it, too.  It sees itself only where it sees nobody else in any round.

The published chunks of sorted positions with one chunk back are a window as well, but where it ends depends on all of
the sequence, the future included.  Counted within the bucket, as here, the three views agree and padding is invisible.

Training costs O(r l (log l + window)) time and O(r l) memory.  Decoding keeps keys, values and buckets, O(r m) a step.

Axes: b batch, l length, d model width, h heads, e head width, m keys, r rounds, n half the buckets.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.mixers.heads import join_heads, real_positions, split_heads
from longreach.mixers.pattern_attention import FEW, PIECE, Position, attend_in_pieces
from longreach.ops.attention_mask import AttentionMask
from longreach.ops.block_attention import band_of_blocks, block_attention, merge_attention
from longreach.ops.key_value_cache import (
    KeyValueBlock,
    KeyValueCache,
    append,
    empty_cache,
    join,
    next_positions,
    parts,
)
from longreach.ops.rotary import rotary

BLOCK = 64
"""Queries in a block, at most."""


class Reformer(SequenceMixer[KeyValueCache]):
    """Multi-head attention within buckets of a locality-sensitive hash.

    Args:
        d_model: width of the model.
        n_heads: number of heads.
        n_buckets: number of buckets, even; about length / window shares the positions out.
        n_hashes: number of rounds; more find more of the pairs with large scores.
        window: how many positions of its bucket a position sees, to each side.
        position: how positions enter, by rotation or not at all (as published; the model adds them to its input).
        causal: whether a position sees only itself and what came before it.
        bias: whether the projections have biases.
        seed: decides the rotations, which are kept with the weights.
    """

    rotations: Tensor

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 4,
        n_buckets: int = 32,
        n_hashes: int = 2,
        window: int = 96,
        position: Position = "rotary",
        causal: bool = True,
        bias: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(d_model, causal=causal)
        if n_heads < 1 or d_model % n_heads or (position == "rotary" and d_model // n_heads % 2):
            raise InputError(f"n_heads={n_heads} must divide d_model={d_model}, into even widths for rotary positions")
        if n_buckets < 2 or n_buckets % 2 or n_hashes < 1 or window < 1:
            raise InputError(f"{n_buckets=} must be even and at least 2, {n_hashes=} and {window=} at least 1")
        self.n_heads, self.n_hashes, self.window, self.position = n_heads, n_hashes, window, position
        self.query = nn.Linear(d_model, d_model, bias=bias)
        self.value = nn.Linear(d_model, d_model, bias=bias)
        self.out = nn.Linear(d_model, d_model, bias=bias)
        shape = (n_hashes, n_heads, d_model // n_heads, n_buckets // 2)
        self.register_buffer("rotations", torch.randn(shape, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Attend over the whole sequence."""
        return self.out(join_heads(self._mix(*self._project(x, real_positions(x, mask)), mask)))

    def init_state(self, batch_size: int) -> KeyValueCache:
        """An empty key-value cache; a key is followed by its buckets."""
        if not self.causal:
            raise self._no_recurrent_view()
        shape = (batch_size, self.n_heads, 0, self.rotations.shape[2])
        key = self.rotations.new_zeros(*shape[:3], shape[3] + self.n_hashes)
        return empty_cache(key, self.value.weight.new_zeros(shape))

    def step(self, x: Float[Tensor, "b d"], state: KeyValueCache) -> tuple[Float[Tensor, "b d"], KeyValueCache]:
        """Attend from one new position, O(r m)."""
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state

    def prefill(
        self, x: Float[Tensor, "b l d"], state: KeyValueCache, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], KeyValueCache]:
        """Attend from a chunk of new positions; as `forward` at the beginning, else piece by piece, O(r l m)."""
        position = next_positions(state, x.shape[1], mask)
        query, key, value = self._project(x, position)
        new = KeyValueBlock(key, value, position)
        if state.tail.size == len(state.blocks) == 0 and x.shape[1] > FEW:
            y, state = self._mix(query, key, value, mask), append(state, new)
        else:
            y, state = attend_in_pieces(query, new, state, self._attend_next, PIECE)
        return self.out(join_heads(y)), state

    def _project(
        self, x: Float[Tensor, "b l d"], position: Int[Tensor, "#b l"]
    ) -> tuple[Float[Tensor, "b h l e"], Float[Tensor, "b h l er"], Float[Tensor, "b h l e"]]:
        """Queries; keys, each followed by its buckets; values.  What is hashed is never narrower than float32, as no
        rounding should decide who sees whom."""
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.promote_types(self.query.weight.dtype, torch.float32)
            bias = None if self.query.bias is None else self.query.bias.to(wide)
            query = F.linear(x.to(wide), self.query.weight.to(wide), bias)
            query = split_heads(query, self.n_heads)
            buckets = lsh_buckets(query.detach(), self.rotations).movedim(2, 3)
            key = query / (query.square().sum(-1, keepdim=True) + 1e-6 * query.shape[-1]).sqrt()
            if self.position == "rotary":
                query, key = (rotary(turned, position.expand(len(x), -1)) for turned in (query, key))
        value = split_heads(self.value(x), self.n_heads)
        return query, torch.cat([key, buckets.to(key.dtype)], dim=-1), value

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """All rounds, each sorted by bucket, where heads are rows of the batch."""
        length, width = query.shape[2:]
        real = torch.ones(1, length, dtype=torch.bool, device=query.device) if mask is None else mask
        real = real.expand(len(query), -1).repeat_interleave(self.n_heads, 0)
        key, buckets = key.split((width, self.n_hashes), dim=-1)
        sets = []
        for bucket in buckets.flatten(0, 1).long().unbind(-1):
            order = bucket.argsort(dim=-1, stable=True)
            place = order[:, None, :, None].expand(-1, 1, -1, width)
            rows = [x.flatten(0, 1)[:, None].gather(2, place) for x in (query, key, value)]
            back = order.argsort(dim=-1)[:, None]
            for y, log_total in self._attend_to_buckets(rows, bucket.gather(1, order), real.gather(1, order)):
                y = y.gather(2, back[..., None].expand_as(y))
                sets.append((y, log_total.gather(2, back)))
        y, log_total = merge_attention(*sets)
        y = torch.where(log_total[..., None] == -torch.inf, value.flatten(0, 1)[:, None].to(y.dtype), y)
        return y.view(*value.shape)

    def _attend_to_buckets(self, rows: list[Tensor], bucket: Tensor, real: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """y and log Z over what is before, and without `causal` over what is after, in rows sorted by bucket."""
        length, size, device = rows[0].shape[2], min(BLOCK, self.window), bucket.device
        n, reach, place = -(-length // size), -(-self.window // size), torch.arange(length, device=device)[None]
        for sign, before, after in [(1, reach, 0), (-1, 0, reach)][: 1 if self.causal else 2]:
            rule = AttentionMask(True, self.window, real, bucket, bucket, sign * place - 1, sign * place)
            listed = band_of_blocks(n, before, after, device=device)
            query, key, value = rows
            yield block_attention(query, key, value, listed, size, rule, scale=1.0)

    def _attend_next(self, query: Tensor, new: KeyValueBlock, state: KeyValueCache) -> Tensor:
        """The definition, for a few queries."""
        width, seen = query.shape[-1], join(parts(state, new))
        key, buckets = seen.key.split((width, self.n_hashes), dim=-1)
        same = new.key[..., width:].movedim(-1, 2)[..., None] == buckets.movedim(-1, 2)[..., None, :]  # (b, h, r, l, m)
        earlier = (seen.position[:, None] >= 0) & (seen.position[:, None] < new.position[:, :, None])
        same = same & earlier[:, None, None]
        count = (same & (same.flip(-1).cumsum(-1).flip(-1) <= self.window)).sum(2)  # (b, h, l, m)
        scores = query @ key.mT + count.to(query.dtype).log()
        blind = (scores == -torch.inf).all(-1, keepdim=True)
        y = scores.masked_fill(blind, 0.0).softmax(-1).to(seen.value.dtype) @ seen.value
        return torch.where(blind, new.value, y)


def lsh_buckets(x: Float[Tensor, "b h l e"], rotations: Float[Tensor, "r h e n"]) -> Int[Tensor, "b h r l"]:
    """The bucket of every vector in every round: which of the 2 n directions +-R it points to most."""
    turned = torch.einsum("bhle,rhen->bhrln", x, rotations.to(x.dtype))
    return torch.cat([turned, -turned], dim=-1).argmax(-1)
