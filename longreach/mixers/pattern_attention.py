"""What attention over a pattern of positions has in common: projections, heads, and the three views of a causal one.

    q, k, v = split(x W_qkv)        y = attention(rotary(q), rotary(k), v where the pattern lets i see j) W_out

A pattern is a rule on positions, which count the real positions of a row from 0.  A subclass states it for whole
sequences (`_mix`, by longreach.ops.block_attention) and, if it can be causal, once more pair by pair (`_visible`), for
the few queries at a time that meet a key-value cache.  The laws compare the two.

Axes: b batch, l length, d model width, h heads, e head width, m keys.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.mixers.heads import join_heads, real_positions, width_of_heads
from longreach.ops.key_value_cache import (
    KeyValueBlock,
    KeyValueCache,
    append,
    attend_to_parts,
    empty_cache,
    next_positions,
    parts,
)
from longreach.ops.rotary import rotary

Position = Literal["rotary", "none"]
"""How positions enter the scores: turned into queries and keys, or not at all."""
PIECE = 128
"""How many new positions at a time attend to a cache, unless a mixer says otherwise."""
FEW = 16
"""So few positions at the beginning are not worth the whole machinery."""


class PatternAttention(SequenceMixer[KeyValueCache]):
    """Base class of mixers in which positions decide who sees whom."""

    reach: int | None = None
    """How many of the newest positions the next one may see, if there is a limit: older ones leave the cache."""
    piece: int = PIECE
    """How many new positions at a time attend to a cache."""

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int,
        head_dim: int | None,
        position: Position,
        causal: bool,
        bias: bool,
    ) -> None:
        super().__init__(d_model, causal=causal)
        self.n_heads, self.head_dim = n_heads, width_of_heads(d_model, n_heads, head_dim)
        if position == "rotary" and self.head_dim % 2:
            raise InputError(f"rotary positions turn pairs, so heads must have an even width, not {self.head_dim}")
        self.position = position
        self.cached_dim = self.head_dim
        self.qkv = nn.Linear(d_model, 3 * n_heads * self.head_dim, bias=bias)
        self.out = nn.Linear(n_heads * self.head_dim, d_model, bias=bias)

    @abstractmethod
    def _mix(
        self,
        query: Float[Tensor, "b h l e"],
        key: Float[Tensor, "b h l e"],
        value: Float[Tensor, "b h l f"],
        mask: Bool[Tensor, "b l"] | None,
    ) -> Float[Tensor, "b h l f"]:
        """Attention over whole sequences, whose padding lies at their end: positions are indices."""

    def _visible(self, query: Int[Tensor, "b l 1"], key: Int[Tensor, "b 1 m"]) -> Bool[Tensor, "b l m"]:
        """Which pairs of positions a causal pattern joins; that nobody sees what comes later is added."""
        raise self._no_recurrent_view()

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Attend over the whole sequence."""
        position = real_positions(x, mask)
        return self._merge(self._mix_anywhere(self._project(x, position), mask), position)

    def init_state(self, batch_size: int) -> KeyValueCache:
        """An empty key-value cache."""
        if not self.causal:
            raise self._no_recurrent_view()
        empty = self.out.weight.new_zeros(batch_size, self.n_heads, 0, self.cached_dim)
        return empty_cache(empty, empty)

    def step(self, x: Float[Tensor, "b d"], state: KeyValueCache) -> tuple[Float[Tensor, "b d"], KeyValueCache]:
        """Attend from one new position, O(m)."""
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state

    def prefill(
        self, x: Float[Tensor, "b l d"], state: KeyValueCache, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], KeyValueCache]:
        """Attend from a chunk of new positions; as `forward` at the beginning, else piece by piece, O(l m)."""
        position = next_positions(state, x.shape[1], mask)
        whole = query, key, value = self._project(x, position)
        new = KeyValueBlock(key, value, position)
        if state.tail.size == len(state.blocks) == 0 and x.shape[1] > FEW:
            y = self._mix_anywhere(whole, mask)
            return self._merge(y, position), append(state, new, self.reach)
        y, state = attend_in_pieces(query, new, state, self._attend_next, self.piece, self.reach)
        return self._merge(y, position), state

    def _attend_next(
        self, query: Float[Tensor, "b h l e"], new: KeyValueBlock, state: KeyValueCache
    ) -> Float[Tensor, "b h l f"]:
        """Attention of a few new positions to themselves and to all that `state` holds."""
        return attend_to_parts(query, new.position, parts(state, new), visible=self._visible)

    def _project(
        self, x: Float[Tensor, "b l d"], position: Int[Tensor, "#b l"]
    ) -> tuple[Float[Tensor, "b h l e"], Float[Tensor, "b h l e"], Float[Tensor, "b h l f"]]:
        """Queries, keys and values of what stands at `position`, the first two turned to it."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        return self._turn(query, position), self._turn(key, position), value

    def _turn(self, x: Float[Tensor, "b h l e"], position: Int[Tensor, "#b l"]) -> Float[Tensor, "b h l e"]:
        """Queries or keys with their positions in them."""
        return rotary(x, position.expand(len(x), -1)) if self.position == "rotary" else x

    def _merge(self, y: Float[Tensor, "b h l f"], position: Int[Tensor, "#b l"]) -> Float[Tensor, "b l d"]:
        """Join the heads of what stands at `position`."""
        return self.out(join_heads(y))

    def _mix_anywhere(self, whole: tuple[Tensor, Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """`_mix`, wherever the padding lies."""
        if mask is None:
            return self._mix(*whole, mask)
        order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)  # what is real comes first
        query, key, value = (x.gather(2, order[:, None, :, None].expand_as(x)) for x in whole)
        y = self._mix(query, key, value, mask.gather(1, order))
        return y.gather(2, order.argsort(dim=1)[:, None, :, None].expand_as(y))


def attend_in_pieces(
    query: Float[Tensor, "b h l e"],
    new: KeyValueBlock,
    state: KeyValueCache,
    attend: Callable[[Tensor, KeyValueBlock, KeyValueCache], Tensor],
    size: int,
    reach: int | None = None,
) -> tuple[Float[Tensor, "b h l f"], KeyValueCache]:
    """What `attend` gives for the next `size` positions, their keys and values and the state before, till all are read.

    Older positions than the newest `reach` leave the state.
    """
    outputs = []
    for start in range(0, new.size, size):
        piece = slice(start, start + size)
        part = KeyValueBlock(new.key[:, :, piece], new.value[:, :, piece], new.position[:, piece])
        outputs.append(attend(query[:, :, piece], part, state))
        state = append(state, part, reach)
    return torch.cat(outputs, dim=2), state
