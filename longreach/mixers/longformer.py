"""Longformer: a sliding window and a few global positions (Beltagy et al. 2020, https://arxiv.org/abs/2004.05150).

    q, k, v = split(x W_qkv)        q', k', v' = split(x W'_qkv)           rotary in q, k, q', k'
    y_i = sum_j softmax_j(q_i . k_j / sqrt(e)) v_j W_out         over j near i, and all global j
    y_g = sum_j softmax_j(q'_g . k'_j / sqrt(e)) v'_j W_out      over all j, if g is global

`window` positions are near: the position itself, half of the others before and half after it (one more after it where
they are odd in number), or with `dilation` d every d-th position of a window d times as wide.  With `causal`, none of
them is later.  Positions count the real positions of a row.

Training costs O(l (window + g)) time for g global positions, and O(l) memory.  Decoding keeps the window, or everything
where there are global positions.

Axes: b batch, l length, d model width, h heads, e head width, m keys, g global positions; f is e, or with global
positions 2 e.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.pattern_attention import PatternAttention, Position
from longreach.ops.attention import attention
from longreach.ops.attention_mask import AttentionMask
from longreach.ops.block_attention import band_of_blocks, block_attention, columns, merge_attention, rows

BLOCKS = (16, 128)
"""The smallest and the largest block of queries; between them, a quarter of the window."""


class Longformer(PatternAttention):
    """Multi-head attention over a window, and to and from global positions.

    Args:
        d_model: width of the model.
        n_heads: number of heads.
        head_dim: width of a head (the default: d_model / n_heads).
        window: number of near positions in both directions together.
        dilation: distance of neighbours in the window; larger in higher layers for a longer reach.
        global_positions: which positions see and are seen by all, by maps of their own; (0,) for a classifying token.
        position: how positions enter, by rotation or not at all (as published; the model adds them to its input).
        causal: whether a position sees only itself and what came before it.
        bias: whether the projections have biases.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 4,
        head_dim: int | None = None,
        window: int = 512,
        dilation: int = 1,
        global_positions: tuple[int, ...] = (),
        position: Position = "rotary",
        causal: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__(d_model, n_heads=n_heads, head_dim=head_dim, position=position, causal=causal, bias=bias)
        if window < 1 or dilation < 1:
            raise InputError(f"{window=} and {dilation=} must be at least 1")
        if any(place < 0 for place in global_positions):
            raise InputError(f"{global_positions=} count from 0; none can be negative")
        self.window, self.dilation, self.global_positions = window, dilation, tuple(sorted(set(global_positions)))
        self.behind, self.ahead = (window - 1) - window // 2, window // 2
        self.reach = None if global_positions else self.behind * dilation + 1
        if global_positions:
            self.qkv_global = nn.Linear(d_model, self.qkv.out_features, bias=bias)
            self.cached_dim = 2 * self.head_dim

    def _mix(
        self,
        query: Float[Tensor, "b h l f"],
        key: Float[Tensor, "b h l f"],
        value: Float[Tensor, "b h l f"],
        mask: Bool[Tensor, "b l"] | None,
    ) -> Float[Tensor, "b h l f"]:
        """The window; and with global positions, them as keys and them as queries."""
        position = torch.arange(query.shape[2], device=query.device)
        real = torch.ones_like(position[None], dtype=torch.bool) if mask is None else mask
        if not self.global_positions:
            return self._slide(query, key, value, real, 1.0)[0]
        chosen = self._globals(query.device)
        chosen = chosen[chosen < query.shape[2]] if query.shape[2] <= self.global_positions[-1] else chosen
        (query, query_g), (key, key_g), (value, value_g) = (x.chunk(2, dim=-1) for x in (query, key, value))
        near = self._slide(query, key, value, real & ~self._is_global(position), math.sqrt(0.5))
        if not len(chosen):
            return torch.cat([near[0], torch.zeros_like(near[0])], dim=-1)
        n, factor = -(-query.shape[2] // BLOCKS[1]), (2 * self.head_dim) ** -0.5
        rule = AttentionMask(self.causal, None, real[:, chosen], None, None, position[None], chosen[None])
        every = torch.zeros(1, 1, n, 1, dtype=torch.int64, device=query.device)
        far = (query, key[:, :, chosen], value[:, :, chosen], every, BLOCKS[1], rule)
        y, _ = merge_attention(near, block_attention(*far, key_block_size=len(chosen), scale=factor))
        rule = AttentionMask(self.causal, None, real, None, None, chosen[None], position[None])
        y_global = attention(query_g[:, :, chosen], key_g, value_g, rule, scale=factor)
        return torch.cat([y, torch.zeros_like(y).index_copy(2, chosen, y_global)], dim=-1)

    def _slide(self, query: Tensor, key: Tensor, value: Tensor, real: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        """y and log Z of the window; positions count halves, so that one of even width has a middle."""
        length, dilation = query.shape[2], min(self.dilation, query.shape[2])
        real = columns(real.expand(len(query), -1)[:, None, :, None], dilation)[:, 0, :, 0]
        query, key, value = (columns(x, dilation) for x in (query, key, value))
        place = 2 * torch.arange(query.shape[2], device=query.device)[None]
        rule = AttentionMask(self.causal, self.window, real, None, None, place + (1 - self.window % 2), place)
        size = min(max(self.window // 4, BLOCKS[0]), BLOCKS[1])
        before, after = -(-self.behind // size), 0 if self.causal else -(-self.ahead // size)
        listed = band_of_blocks(-(-query.shape[2] // size), before, after, device=query.device)
        scale = factor * query.shape[-1] ** -0.5
        y, log_total = block_attention(query, key, value, listed, size, rule, scale=scale)
        return rows(y, dilation, length), rows(log_total[..., None], dilation, length)[..., 0]

    def _visible(self, query: Int[Tensor, "b l 1"], key: Int[Tensor, "b 1 m"]) -> Bool[Tensor, "b l m"]:
        """Near, or one of both global."""
        distance = query - key
        near = (distance <= self.behind * self.dilation) & (distance >= -self.ahead * self.dilation)
        near = near & (distance % self.dilation == 0)
        return near | self._is_global(query) | self._is_global(key) if self.global_positions else near

    def _project(
        self, x: Float[Tensor, "b l d"], position: Int[Tensor, "#b l"]
    ) -> tuple[Float[Tensor, "b h l f"], Float[Tensor, "b h l f"], Float[Tensor, "b h l f"]]:
        """With global positions both kinds side by side; of a query only one half is not 0, so that one product serves
        both.  The factor sqrt(2) is for the scale of twice as wide queries."""
        near = super()._project(x, position)
        if not self.global_positions:
            return near
        query, key, value = self.qkv_global(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        apart = self._is_global(position)[:, None, :, None]
        query = torch.cat([near[0].masked_fill(apart, 0.0), self._turn(query, position).masked_fill(~apart, 0.0)], -1)
        return (
            query * math.sqrt(2),
            torch.cat([near[1], self._turn(key, position)], -1),
            torch.cat([near[2], value], -1),
        )

    def _merge(self, y: Float[Tensor, "b h l f"], position: Int[Tensor, "#b l"]) -> Float[Tensor, "b l d"]:
        """The half that belongs to the position, heads joined."""
        if self.global_positions:
            near, apart = y.chunk(2, dim=-1)
            y = torch.where(self._is_global(position)[:, None, :, None], apart, near)
        return super()._merge(y, position)

    def _globals(self, device: torch.device) -> Int[Tensor, " g"]:
        return torch.tensor(self.global_positions, dtype=torch.int64, device=device)

    def _is_global(self, position: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        return torch.isin(position, self._globals(position.device))
