"""Softmax attention as a mixer (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), the baseline of all others.

    q, k, v = split(x W_qkv)        y = attention(rotary(q), rotary(k), v) W_out

Several query heads may share one key-value head (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245).  Positions
enter by rotation (https://arxiv.org/abs/2104.09864), by a penalty on distance (ALiBi, https://arxiv.org/abs/2108.12409)
or not at all; both count the real positions of a row only, so that padding is invisible wherever it lies.

Training costs O(l^2) time and O(l) memory, or O(l window) time; decoding keeps the past in a key-value cache.

Axes: b batch, l length, d model width, h query heads, g key-value heads, e head width, m keys.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.mixers.heads import draw_seed, join_heads, real_positions, width_of_heads
from longreach.ops.attention import attention
from longreach.ops.attention_mask import AttentionMask
from longreach.ops.key_value_cache import (
    KeyValueBlock,
    KeyValueCache,
    append,
    attend_to_parts,
    empty_cache,
    join,
    next_positions,
    parts,
)
from longreach.ops.rotary import rotary

FEW = 16
"""Up to so many new positions attend to the parts of the cache; more are worth a copy of it in one piece."""


class Attention(SequenceMixer[KeyValueCache]):
    """Multi-head attention over the whole past (`causal`) or the whole sequence, or over a sliding window of either.

    Args:
        d_model: width of the model.
        n_heads: number of query heads.
        head_dim: width of a head (the default: d_model / n_heads).
        n_kv_heads: number of key-value heads, a divisor of n_heads (the default: n_heads).
        position: how positions enter: turned into queries and keys, as a penalty on distance, or not at all.
        rotary_base: the slowest rotation turns by one radian in about so many positions; larger for longer contexts.
        window: how many of the newest positions a query sees, its own included; to each side without `causal`.
        causal: whether a position sees only itself and what came before it.
        dropout: share of attention weights that are dropped in training.
        bias: whether the two projections have biases.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 4,
        head_dim: int | None = None,
        n_kv_heads: int | None = None,
        position: Literal["rotary", "alibi", "none"] = "rotary",
        rotary_base: float = 10_000.0,
        window: int | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__(d_model, causal=causal)
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        head_dim = width_of_heads(d_model, n_heads, head_dim)
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            raise InputError(f"n_heads={n_heads} must be a multiple of n_kv_heads={n_kv_heads}")
        if window is not None and window < 1:
            raise InputError(f"window={window} must be at least 1, which is a position itself, or None for no limit")
        if position == "rotary" and head_dim % 2:
            raise InputError(f"rotary positions turn pairs, so heads must have an even width, not {head_dim}")
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.position, self.rotary_base, self.window, self.dropout = position, rotary_base, window, dropout
        self.qkv = nn.Linear(d_model, (n_heads + 2 * n_kv_heads) * self.head_dim, bias=bias)
        self.out = nn.Linear(n_heads * self.head_dim, d_model, bias=bias)
        self.alibi_slopes: Tensor | None
        slopes = alibi_slopes(n_heads) if position == "alibi" else None
        self.register_buffer("alibi_slopes", slopes, persistent=False)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Attend over the whole sequence."""
        position = real_positions(x, mask)
        query, key, value = self._project(x, position)
        return self._attend(query, key, value, self._rule(position, mask))

    def init_state(self, batch_size: int) -> KeyValueCache:
        """An empty key-value cache."""
        if not self.causal:
            raise self._no_recurrent_view()
        empty = self.out.weight.new_zeros(batch_size, self.n_kv_heads, 0, self.head_dim)
        return empty_cache(empty, empty)

    def step(self, x: Float[Tensor, "b d"], state: KeyValueCache) -> tuple[Float[Tensor, "b d"], KeyValueCache]:
        """Attend from one new position, O(m)."""
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state

    def prefill(
        self, x: Float[Tensor, "b l d"], state: KeyValueCache, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], KeyValueCache]:
        """Attend from a chunk of new positions to them and to everything before."""
        position = next_positions(state, x.shape[1], mask)
        query, key, value = self._project(x, position)
        new = KeyValueBlock(key, value, position)
        seen = parts(state, new)
        if x.shape[1] <= FEW and not (self.training and self.dropout):
            y = attend_to_parts(query, position, seen, window=self.window, alibi_slopes=self.alibi_slopes)
            y = self.out(join_heads(y))
        elif sum(part.size for part in seen) == new.size:
            y = self._attend(query, key, value, self._rule(position, mask))
        else:
            whole = join(seen)
            rule = AttentionMask(True, self.window, whole.position >= 0, None, None, position, whole.position)
            y = self._attend(query, whole.key, whole.value, rule)
        return y, append(state, new, self.window)

    def _project(
        self, x: Float[Tensor, "b l d"], position: Int[Tensor, "#b l"]
    ) -> tuple[Float[Tensor, "b _ l e"], ...]:
        """Queries, keys and values, the first two turned to their positions where those enter by rotation."""
        sizes = (self.n_heads, self.n_kv_heads, self.n_kv_heads)
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (b, h + 2 g, l, e)
        if self.position != "rotary":
            return heads.split(sizes, dim=1)
        turning, value = heads.split((self.n_heads + self.n_kv_heads, self.n_kv_heads), dim=1)
        turned = rotary(turning, position.expand(x.shape[0], -1), base=self.rotary_base)
        return *turned.split(sizes[:2], dim=1), value

    def _rule(self, position: Int[Tensor, "#b l"], mask: Bool[Tensor, "b l"] | None) -> AttentionMask:
        """Who sees whom in a sequence that starts here; positions matter only where distances do and padding lies."""
        rule = AttentionMask(self.causal, self.window, mask)
        if mask is not None and (self.window is not None or self.alibi_slopes is not None):
            rule = rule._replace(query_position=position, key_position=position)
        return rule

    def _attend(
        self,
        query: Float[Tensor, "b h l e"],
        key: Float[Tensor, "b g m e"],
        value: Float[Tensor, "b g m e"],
        rule: AttentionMask,
    ) -> Float[Tensor, "b l d"]:
        """Attention and the output projection."""
        dropout = self.dropout if self.training else 0.0
        seed = draw_seed(dropout, query.device)
        y = attention(query, key, value, rule, alibi_slopes=self.alibi_slopes, dropout=dropout, dropout_seed=seed)
        return self.out(join_heads(y))


def alibi_slopes(n_heads: int) -> Float[Tensor, " h"]:
    """The slopes of ALiBi: 2^(-8 i / n), i = 1 .. n, if n is a power of two.

    Otherwise, as published: those of the next smaller power n', then every second one of 2 n' from the first.
    """
    power = 1 << (n_heads.bit_length() - 1)
    exponents = [8 * i / power for i in range(1, power + 1)]
    exponents += [8 * i / (2 * power) for i in range(1, 2 * (n_heads - power), 2)]
    return 2.0 ** -torch.tensor(exponents)
