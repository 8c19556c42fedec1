"""Sparse Sinkhorn attention: a block sees itself and a learned mixture of blocks (Tay et al. 2020,
https://arxiv.org/abs/2002.11296).

    Q, K, V    = split(x W_qkv), cut into n blocks of s positions, the last one filled up with zeros
    A_ij       = exp((sum of the keys of block i, or if causal of all blocks before it) W_sort / temperature)_j
    P          = rows of A divided by their sums, then n_iterations times columns and rows
    K'_i, V'_i = sum_j P_ij K_j, sum_j P_ij V_j
    y_i        = (softmax(Q_i K_i^T / sqrt(e)) V_i + softmax(Q_i K'_i^T / sqrt(e)) V'_i) W_out

Rotary positions enter the first product only: a mixture of blocks is nowhere.  P tends to a doubly stochastic matrix, a
soft permutation of blocks.  If causal, only blocks j < i are mixed, and a column is divided by its sum over the rows up
to its own; the first block has nothing but itself.  A block is s real positions of a row.

Training costs O(l s + (l / s)^2 (s d + n_iterations h)) time and O(l) memory but for P.  Decoding keeps all keys and
values, O(m d + (m / s)^2) a step.

Axes: b batch, l length, d model width, h heads, e head width, n blocks, s positions of a block, m keys.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers.pattern_attention import FEW, PatternAttention, Position
from longreach.ops.attention_mask import AttentionMask
from longreach.ops.block_attention import band_of_blocks, block_attention
from longreach.ops.key_value_cache import KeyValueBlock, KeyValueCache, join, parts


class Sinkhorn(PatternAttention):
    """Multi-head attention within blocks and to learned mixtures of blocks.

    Args:
        d_model: width of the model.
        n_heads: number of heads.
        block_size: number of positions in a block.
        max_length: the longest sequence; what is learned about the order counts its blocks.
        n_iterations: how often columns and rows are balanced; 0 is a softmax over blocks.
        temperature: divides what is learned about the order; lower is closer to a permutation.
        position: how positions enter, by rotation or not at all (as published; the model adds them to its input).
        causal: whether a position sees only itself and what came before it.
        bias: whether the two projections have biases.
    """

    piece = FEW

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 4,
        block_size: int = 64,
        max_length: int = 4096,
        n_iterations: int = 5,
        temperature: float = 0.75,
        position: Position = "rotary",
        causal: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__(d_model, n_heads=n_heads, head_dim=None, position=position, causal=causal, bias=bias)
        if block_size < 1 or max_length < 1 or n_iterations < 0 or temperature <= 0:
            raise InputError(
                f"{block_size=} and {max_length=} must be at least 1, {n_iterations=} at least 0, "
                f"{temperature=} above 0"
            )
        self.block_size, self.n_iterations, self.temperature = block_size, n_iterations, temperature
        self.max_length, max_blocks = max_length, -(-max_length // block_size)
        bound = math.sqrt(3.0 / self.head_dim)  # as torch initialises a linear map
        self.sort = nn.Parameter(torch.empty(self.head_dim, max_blocks).uniform_(-bound, bound) / block_size)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Attend over the whole sequence."""
        self._check_length(x.shape[1])
        return super().forward(x, mask)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: KeyValueCache, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], KeyValueCache]:
        """Attend from a chunk of new positions; as `forward` at the beginning, else FEW at a time."""
        self._check_length(int(state.n_read.max()) + x.shape[1])
        return super().prefill(x, state, mask)

    def _turn(self, x: Tensor, position: Tensor) -> Tensor:
        """Nothing yet: what is mixed has no position."""
        return x

    def _mix(
        self,
        query: Float[Tensor, "b h l e"],
        key: Float[Tensor, "b h l e"],
        value: Float[Tensor, "b h l f"],
        mask: Bool[Tensor, "b l"] | None,
    ) -> Float[Tensor, "b h l f"]:
        """Every block with itself, and with its mixture."""
        length, size = query.shape[2], self.block_size
        position = torch.arange(length, device=query.device)[None].expand(len(query), -1)
        own = band_of_blocks(-(-length // size), 0, device=query.device)
        rule = AttentionMask(self.causal, key_mask=mask)
        y, _ = block_attention(super()._turn(query, position), super()._turn(key, position), value, own, size, rule)
        real = torch.ones_like(position, dtype=torch.bool) if mask is None else mask
        weights, key, value = self._sort(key, value, real)
        mixed_key, mixed_value = (torch.einsum("bhij,bhjse->bhise", weights, x).flatten(2, 3) for x in (key, value))
        filled = _cut(real[:, None, :, None], size)[:, 0, :, :, 0].any(1, keepdim=True)  # (b, 1, s)
        mixes = (weights.sum((1, 3)) > 0)[..., None]  # (b, n, 1)
        rule = AttentionMask(key_mask=(filled & mixes).flatten(1))
        mixture, _ = block_attention(query, mixed_key.to(query.dtype), mixed_value.to(query.dtype), own, size, rule)
        return y + mixture

    def _sort(self, key: Tensor, value: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """P (b, h, n, n), and the blocks of keys and values (b, h, n, s, e)."""
        exists = real[:, :: self.block_size]
        key, value = (_cut(x.masked_fill(~real[:, None, :, None], 0.0), self.block_size) for x in (key, value))
        with torch.autocast(key.device.type, enabled=False):
            sums = key.to(torch.promote_types(key.dtype, torch.float32)).sum(3)
            if self.causal:
                sums = sums.cumsum(2) - sums
            scores = sums @ self.sort[:, : sums.shape[2]].to(sums.dtype) / self.temperature
            allowed = exists[:, None, :, None] & exists[:, None, None, :]
            if self.causal:
                allowed = allowed & torch.ones_like(scores[0, 0], dtype=torch.bool).tril(-1)
            scores = scores.masked_fill(~allowed, -torch.inf)
            highest = scores.detach().amax(-1, keepdim=True)
            weights = _divided((scores - highest.masked_fill(highest == -torch.inf, 0.0)).exp())
            for _ in range(self.n_iterations):
                column = weights.cumsum(2) if self.causal else weights.sum(2, keepdim=True)
                weights = _divided(weights / column.masked_fill(column == 0, 1.0))
        return weights, key, value

    def _attend_next(self, query: Tensor, new: KeyValueBlock, state: KeyValueCache) -> Tensor:
        """The same for a few queries, each with its own block and mixture."""
        seen = join(parts(state, new))
        size, position, (b, h, l, e) = self.block_size, new.position.clamp(min=0), query.shape
        length = (int(position.max()) // size + 1) * size
        place = torch.where(seen.position < 0, length, seen.position)[:, None, :, None].expand(-1, h, -1, e)
        key, value = (x.new_zeros(b, h, length + 1, e).scatter(2, place, x)[:, :, :length] for x in seen[:2])
        real = torch.arange(length, device=query.device) <= seen.position.amax(1, keepdim=True)
        weights, key, value = self._sort(key, value, real)
        row = (position // size)[:, None, :, None]
        weights = weights.gather(2, row.expand(-1, h, -1, weights.shape[3])).to(key.dtype)  # (b, h, l, n)
        mixed_key, mixed_value = ((weights @ x.flatten(3)).unflatten(3, (size, e)) for x in (key, value))
        mixture = _attend(query, mixed_key, mixed_value, torch.ones_like(row, dtype=torch.bool))
        own = row[..., None].expand(-1, h, -1, size, e)
        key, value = key.gather(2, own), value.gather(2, own)  # (b, h, l, s, e)
        place = (position // size * size)[..., None] + torch.arange(size, device=query.device)
        key = super()._turn(key.flatten(2, 3), place.flatten(1)).unflatten(2, (l, size))
        y = _attend(super()._turn(query, position), key, value, (place <= position[..., None])[:, None])
        return y + mixture.masked_fill(row == 0, 0.0)


def _cut(x: Tensor, size: int) -> Tensor:
    """Into blocks: (b, h, l, e) -> (b, h, n, s, e), filled up with zeros."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))


def _divided(x: Tensor) -> Tensor:
    """Rows divided by their sums, where those are not 0."""
    total = x.sum(-1, keepdim=True)
    return x / total.masked_fill(total == 0, 1.0)


def _attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Attention of single queries (b, h, l, e), each to keys of its own (b, h, l, s, e)."""
    scores = (key @ query[..., None])[..., 0] * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return (weights[..., None, :] @ value)[..., 0, :]
