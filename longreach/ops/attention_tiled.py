"""Exact attention in memory linear in the length: FlashAttention (Dao et al. 2022, https://arxiv.org/abs/2205.14135).

The scores are made tile by tile, some queries against some keys, and never kept.  Over the tiles of one block of queries
run the maximum of the scores, the sum of their exponentials and the weighted sum of values:

    w = exp(score - max')       sum' = sum e^(max - max') + sum_j w_j       y' = y e^(max - max') + sum_j w_j v_j

with y / sum as the result.  What is kept for the gradients is log_sum = max + log(sum) of each query, from which every
tile of weights can be made again, and delta = sum_f grad_f y_f, because the gradient through the softmax is

    d score_ij = weight_ij (sum_f grad_if v_jf - delta_i).

Tiles that nobody in them may see are skipped.  All sums are float32 or wider.

Axes: b batch, g key-value heads, r query heads of each, l queries, m keys, e and f widths; i and j within a tile.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longreach.ops.attention_dropout import kept_weights
from longreach.ops.attention_mask import AttentionMask

TILE = 2**19
"""About so many scores make a tile: enough to hide the cost of its calls, few enough to stay in the cache."""
SIDES = (64, 512)
"""The smallest and the largest side of a tile."""


class Options(NamedTuple):
    """What does not take part in the derivative; `mask` has positions."""

    mask: AttentionMask
    scale: float
    softcap: float | None
    dropout: float
    dropout_seed: Tensor | None


class Tile(NamedTuple):
    """Some queries against some keys; `partial` where not all of them may see each other."""

    queries: slice
    keys: slice
    partial: bool


class TiledAttention(torch.autograd.Function):
    """attention(query, key, value, alibi_slopes, bias, options), in tiles."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        slopes: Tensor | None,
        bias: Tensor | None,
        options: Options,
    ) -> Tensor:
        scores = Scores(query, key, slopes, bias, options)
        output = query.new_empty(*query.shape[:3], value.shape[3])
        log_sum = query.new_empty(query.shape[:3], dtype=scores.wide)
        for queries in scores.query_blocks():
            block, block_log_sum = _attend(scores, value, queries)
            output[:, :, queries] = scores.ungroup(block)
            log_sum[:, :, queries] = scores.ungroup(block_log_sum)[..., 0]
        ctx.save_for_backward(query, key, value, slopes, bias, output, log_sum)
        ctx.options = options
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, slopes, bias, output, log_sum = ctx.saved_tensors
        scores = Scores(query, key, slopes, bias, ctx.options)
        return (*Gradients(scores, value, output, log_sum).of(grad), None)


class Scores:
    """Makes tiles of scores, and undoes what it did to them in their gradients."""

    def __init__(
        self, query: Tensor, key: Tensor, slopes: Tensor | None, bias: Tensor | None, options: Options
    ) -> None:
        self.query, self.key, self.bias, self.options = query, key, bias, options
        self.wide = torch.promote_types(query.dtype, torch.float32)
        self.n_groups = key.shape[1]
        self.slopes = None if slopes is None else slopes.to(self.wide).view(self.n_groups, -1, 1, 1)
        heads, longest = query.shape[0] * query.shape[1], max(query.shape[2], key.shape[2])
        side = min(max(int((TILE / max(1, heads)) ** 0.5), SIDES[0]), SIDES[1], longest)
        self.side = side
