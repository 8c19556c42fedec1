"""Exact attention in memory linear in the length: FlashAttention (Dao et al. 2022, https://arxiv.org/abs/2205.14135).

The scores are made tile by tile, some queries against some keys, and never kept.  Over the tiles of one block of
queries run the maximum of the scores, the sum of their exponentials and the weighted sum of values:

    w = exp(score - max')       sum' = sum exp(max - max') + sum_j w_j      y' = y exp(max - max') + sum_j w_j v_j

and y / sum is the result.  Kept for the gradients are the maximum and the sum of each query (one number for both, the
log-sum-exp, would lose digits), from which every tile of weights can be made again, and the result, because

    d score_ij = weight_ij (sum_f grad_if v_jf - delta_i)                   delta_i = sum_f grad_if y_if.

All exponentials are powers of two of scores times log2(e), as torch computes those several times faster on a CPU.
Everything within a tile is float32 or wider.

Axes: b batch, g key-value heads, r query heads of each, l queries, m keys, e and f widths; i and j within a tile.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from longreach.ops.attention_dropout import kept_weights
from longreach.ops.attention_mask import AttentionMask
from longreach.ops.attention_operator import (
    ARGUMENTS,
    GRADIENT_ARGUMENTS,
    N_INPUTS,
    RESULTS,
    Options,
    allocate,
    allocate_gradients,
    register_gradients,
)
from longreach.ops.attention_tiles import Tile, rows_of_tiles

LOG2_E = math.log2(math.e)
TILE = 2**19
"""About so many scores, of all heads, make a tile: enough to hide what calls cost, few enough to stay in the cache."""
SIDES = (64, 512)
"""The shortest and the longest side of a tile."""


def tiled_attention(
    inputs: tuple[Float[Tensor, "..."] | None, ...], mask: AttentionMask, options: Options
) -> Float[Tensor, "b h l f"]:
    """Attention of query, key, value, slopes and bias as longreach.ops.attention defines it; `mask` has positions."""
    return _forward(*inputs, *mask, *options)[0]


@torch.library.custom_op("longreach::tiled_attention", mutates_args=(), schema=f"({ARGUMENTS}) -> {RESULTS}")
def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The result, and each query's maximum and inverse sum."""
    problem = _Problem(arguments)
    output, softmax = allocate(*arguments)
    with torch.autocast(output.device.type, enabled=False):
        for queries, tiles in problem.rows():
            result = _attend(problem, queries, tiles)
            output[:, :, queries], softmax[:, :, queries] = (block.flatten(1, 2) for block in result)
    return output, softmax


@torch.library.custom_op(
    "longreach::tiled_attention_gradients",
    mutates_args=(),
    schema=f"({GRADIENT_ARGUMENTS}) -> Tensor[]",
)
def _gradients(grad: Tensor, output: Tensor, softmax: Tensor, needed: list[bool], *arguments: Any) -> list[Tensor]:
    """The gradients of those of the five inputs that need one."""
    gradients = _Gradients(_Problem(arguments), needed)
    with torch.autocast(grad.device.type, enabled=False):
        for queries, tiles in gradients.problem.rows():
            gradients.add(queries, tiles, grad, output, softmax)
    return gradients.found()


_forward.register_fake(allocate)
_gradients.register_fake(allocate_gradients)
register_gradients(_forward, _gradients)


class _Problem:
    """The arguments of one call, and how they are cut into tiles."""

    def __init__(self, arguments: Sequence[Any]) -> None:
        self.inputs = arguments[:N_INPUTS]
        self.query, self.key, self.value, slopes, self.bias = self.inputs
        self.mask = AttentionMask(*arguments[N_INPUTS : -len(Options._fields)])
        self.options = Options(*arguments[-len(Options._fields) :])
        self.wide = torch.promote_types(self.query.dtype, torch.float32)
        self.n_groups = self.key.shape[1]
        self.slopes = None if slopes is None else slopes.to(self.wide).view(self.n_groups, -1, 1, 1)
        side = math.isqrt(TILE // max(1, self.query.shape[0] * self.query.shape[1]))
        if self.mask.window is not None:
            side = min(side, self.mask.window // 2)  # larger ones would be mostly outside
        self.side = min(max(side // SIDES[0] * SIDES[0], SIDES[0]), SIDES[1])

    def rows(self) -> Iterator[tuple[slice, list[Tile]]]:
        """The blocks of queries, each with the tiles that it needs."""
        return rows_of_tiles(self.mask, self.query.shape[2], self.key.shape[2], self.side)

    def of_queries(self, x: Float[Tensor, "b h l x"], queries: slice) -> Float[Tensor, "b g r i x"]:
        """A block of `x`, heads in groups, wide."""
        return x[:, :, queries].unflatten(1, (self.n_groups, -1)).to(self.wide)

    def of_keys(self, x: Float[Tensor, "b g m x"], keys: slice) -> Float[Tensor, "b g j x"]:
        """A block of `x`, wide."""
        return x[:, :, keys].to(self.wide)

    def bias_of(self, bias: Float[Tensor, "#b #h #l #m"], tile: Tile) -> Float[Tensor, "#b #h #i #j"]:
        """The part of a tensor shaped like the bias that belongs to a tile."""
        rows = tile.queries if bias.shape[2] > 1 else slice(None)
        columns = tile.keys if bias.shape[3] > 1 else slice(None)
        return bias[:, :, rows, columns]

    def scores(
        self, query: Float[Tensor, "b g r i e"], tile: Tile
    ) -> tuple[Float[Tensor, "b g r i j"], Float[Tensor, "b g r i j"] | None]:
        """The scores of a tile times log2(e), and with a soft-cap their tanh; `query` holds q scale log2(e)."""
        scores, tanh = _product(query, self.of_keys(self.key, tile.keys).mT), None
        mask, softcap = self.mask.tile(tile.queries, tile.keys), self.options.softcap
        if softcap is not None:
            tanh = scores.div_(softcap * LOG2_E).tanh_()
            scores = tanh * (softcap * LOG2_E)
        if self.slopes is not None:
            scores.sub_(self.slopes * LOG2_E * mask.distance().abs()[:, None, None])
        if self.bias is not None:
            scores.flatten(1, 2).add_(self.bias_of(self.bias, tile), alpha=LOG2_E)
        if tile.partial:
            forbidden = 1 - mask.allowed().to(self.wide).reciprocal_()  # 0 or -inf, much faster than a masked fill
            scores.add_(forbidden[:, None, None])
        return scores, tanh

    def drop(self, weights: Float[Tensor, "b g r i j"], tile: Tile) -> Float[Tensor, "b g r i j"]:
        """Weights after dropout."""
        seed, dropout = self.options.dropout_seed, self.options.dropout
        if seed is None:
            return weights
        shape = (*self.query.shape[:3], self.key.shape[2])
        kept = kept_weights(seed, dropout, shape, tile.queries, tile.keys)
        return weights * kept.unflatten(1, weights.shape[1:3]).to(self.wide).mul_(1 / (1 - dropout))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a (b, g, r, i, x) times b (b, g, x, y): one matrix product for all r heads that share a key-value head."""
    return (a.flatten(2, 3) @ b).unflatten(2, a.shape[2:4])


def _attend(problem: _Problem, queries: slice, tiles: list[Tile]) -> tuple[Tensor, Tensor]:
    """For one block of queries the result (b, g, r, i, f), and the maximum and inverse sum of each (b, g, r, i, 2)."""
    query = problem.of_queries(problem.query, queries) * (problem.options.scale * LOG2_E)
    maximum = query.new_full((*query.shape[:-1], 1), -torch.inf)
    total, result = torch.zeros_like(maximum), query.new_zeros(*query.shape[:-1], problem.value.shape[3])
    for tile in tiles:
        scores, _ = problem.scores(query, tile)
        highest = torch.maximum(maximum, scores.amax(-1, keepdim=True))
        shift = highest.masked_fill(highest == -torch.inf, 0.0)  # while nothing is visible
        weights, rescale = scores.sub_(shift).exp2_(), (maximum - shift).exp2_()
        total = total * rescale + weights.sum(-1, keepdim=True)
        value = problem.of_keys(problem.value, tile.keys)
        result = result * rescale + _product(problem.drop(weights, tile), value)
        maximum = highest
    blind = total == 0
    inverse = total.reciprocal_().masked_fill_(blind, 0.0)
    return result * inverse, torch.cat([maximum.masked_fill_(blind, 0.0), inverse], dim=-1)


class _Gradients:
    """Sums over tiles of the gradients of query, key, value, slopes and bias."""

    def __init__(self, problem: _Problem, needed: list[bool]) -> None:
        self.problem, self.needed = problem, needed
        self.query, self.key, self.value = (torch.zeros_like(x, dtype=problem.wide) for x in problem.inputs[:3])
        self.slopes, self.bias = (
            torch.zeros_like(x, dtype=problem.wide) if wanted else None
            for x, wanted in zip(problem.inputs[3:], needed[3:], strict=True)
        )

    def found(self) -> list[Tensor]:
        """Those that are needed, in the dtypes of what they belong to."""
        sums = (self.query, self.key, self.value, self.slopes, self.bias)
        return [
            total.to(x.dtype)
            for x, total, wanted in zip(self.problem.inputs, sums, self.needed, strict=True)
            if wanted and total is not None
        ]

    def add(
        self,
        queries: slice,
        tiles: list[Tile],
        grad: Float[Tensor, "b h l f"],
        output: Float[Tensor, "b h l f"],
        softmax: Float[Tensor, "b h l 2"],
    ) -> None:
        """Add what one block of queries contributes."""
        problem, scale = self.problem, self.problem.options.scale
        query, grad, output, softmax = (problem.of_queries(x, queries) for x in (problem.query, grad, output, softmax))
        delta = (grad * output).sum(-1, keepdim=True)
        maximum, inverse = softmax.split(1, dim=-1)
        query, query_grad = query * scale, torch.zeros_like(query)
        for tile in tiles:
            scores, tanh = problem.scores(query * LOG2_E, tile)
            weights = scores.sub_(maximum).exp2_().mul_(inverse)
            self.value[:, :, tile.keys] += _transposed_product(problem.drop(weights, tile), grad)
            value_grad = _product(grad, problem.of_keys(problem.value, tile.keys).mT)
            score_grad = problem.drop(value_grad, tile).sub_(delta).mul_(weights)
            self._add_to_terms(tile, score_grad)
            if tanh is not None:
                score_grad.mul_(1 - tanh.square())
            self.key[:, :, tile.keys] += _transposed_product(score_grad, query)
            query_grad += _product(score_grad, problem.of_keys(problem.key, tile.keys))
        self.query[:, :, queries] = query_grad.mul_(scale).flatten(1, 2)

    def _add_to_terms(self, tile: Tile, score_grad: Tensor) -> None:
        """Gradients of what is added to the scores."""
        if self.slopes is not None:
            distance = self.problem.mask.tile(tile.queries, tile.keys).distance().abs()
            self.slopes -= (score_grad * distance[:, None, None]).sum((0, 3, 4)).flatten()
        if self.bias is not None:
            part = self.problem.bias_of(self.bias, tile)
            part += score_grad.flatten(1, 2).sum_to_size(part.shape)


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """The sum over r and i of a (b, g, r, i, j) times b (b, g, r, i, y)."""
    return a.flatten(2, 3).mT @ b.flatten(2, 3)
