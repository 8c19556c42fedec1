"""The Synthesizer (Tay et al. 2020, https://arxiv.org/abs/2005.00743): attention whose scores need no pairs of tokens.

    score_ts = R_ts + D(x_t)_s + q_t . k_s e^-1/2        each term where it is switched on
    y_t      = sum_s softmax_s(score_ts) v_s             s <= t if causal
    R        = for each head a learned table, or a product of two of rank r ("factorised")
    D(x)     = relu(x W_1) W_2, one score for every position ("dense"), W_2 shared by the heads

Tables count positions, so there is a longest sequence; row and column i belong to the i-th real position.  All terms
but a full table are products of something of t with something of s, and so is their sum: of all the first ones side by
side with all the second ones.  That makes this attention like any other, which never holds the scores.  The state of a
causal mixer is the values of the past, and its keys.

Axes: b batch, l length, d model width, h heads, e head width, m keys, r rank, w width of a term.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.mixers.heads import Heads
from longreach.ops.attention_mask import AttentionMask
from longreach.ops.key_value_cache import KeyValueBlock, KeyValueCache, append, empty_cache, join, next_positions, parts


@dataclass(frozen=True)
class SynthesizerScores:
    """Which terms make up the scores; one at least.

    Attributes:
        random: a table of scores that has nothing to do with the input, in full or as a product.
        rank: of the factorised table.
        dense: scores that each position computes from itself alone.
        dot_product: those of ordinary attention.
    """

    random: Literal["none", "full", "factorised"] = "factorised"
    rank: int = 32
    dense: bool = False
    dot_product: bool = False


class Synthesizer(SequenceMixer[KeyValueCache]):
    """Attention with synthetic scores: O(l^2 d) time and O(l d) memory on a sequence, O(l d) on a step.

    A full table is a parameter of O(max_length^2 h) numbers, and with it so much memory is needed.

    Args:
        d_model: width of the model.
        max_length: the longest sequence.
        n_heads: number of heads.
        head_dim: width of a head; None is d_model / n_heads.
        scores: the terms of the scores.
        causal: whether a position sees only itself and what came before it.
        dropout: probability of dropping an attention weight in training.
        bias: whether the projections have biases.
    """

    def __init__(
        self,
        d_model: int,
        *,
        max_length: int,
        n_heads: int = 4,
        head_dim: int | None = None,
        scores: SynthesizerScores = SynthesizerScores(),
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__(d_model, causal=causal)
        if scores.random == "none" and not scores.dense and not scores.dot_product:
            raise InputError(f"{scores} has no term; switch on random, dense or dot_product")
        if max_length < 1 or scores.rank < 1:
            raise InputError(f"max_length={max_length} and rank={scores.rank} must be at least 1")
        self.max_length, self.scores = max_length, scores
        n_projections = 3 if scores.dot_product else 1
        self.heads = Heads(d_model, n_heads, head_dim, n_projections=n_projections, bias=bias, dropout=dropout)
        std = max_length**-0.5
        if scores.random == "full":
            self.table = nn.Parameter(torch.randn(n_heads, max_length, max_length) * std)
        if scores.random == "factorised":
            self.rows = nn.Parameter(torch.randn(n_heads, max_length, scores.rank) * scores.rank**-0.5)
            self.columns = nn.Parameter(torch.randn(n_heads, scores.rank, max_length) * std)
        if scores.dense:
            self.dense_hidden = nn.Linear(d_model, n_heads * self.heads.head_dim, bias=bias)
            self.dense_scores = nn.Linear(self.heads.head_dim, max_length, bias=bias)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Attend over the whole sequence."""
        self._check_length(x.shape[1])
        if mask is None:
            position = torch.arange(x.shape[1], device=x.device)[None]
        else:
            position = torch.where(mask, mask.cumsum(1) - 1, -1)
        query, new = self._project(x, position)
        return self._attend(x, position, query, new)

    def init_state(self, batch_size: int) -> KeyValueCache:
        """Nothing has been read."""
        if not self.causal:
            raise self._no_recurrent_view()
        heads = self.heads
        value = heads.out.weight.new_zeros(batch_size, heads.n_heads, 0, heads.head_dim)
        return empty_cache(value if self.scores.dot_product else value[..., :1], value)

    def step(self, x: Float[Tensor, "b d"], state: KeyValueCache) -> tuple[Float[Tensor, "b d"], KeyValueCache]:
        """Attend from one new position, O(l d)."""
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state

    def prefill(
        self, x: Float[Tensor, "b l d"], state: KeyValueCache, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], KeyValueCache]:
        """Attend from a chunk of new positions to them and to everything before."""
        if not self.causal:
            raise self._no_recurrent_view()
        position = next_positions(state, x.shape[1], mask)
        query, new = self._project(x, position)
        whole = join(parts(state, new))
        self._check_length(whole.size)
        return self._attend(x, position, query, whole), append(state, new)

    def dense(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b h l e"]:
        """relu(x W_1), whose products with the columns of W_2 are the dense scores."""
        return self.dense_hidden(x).relu().unflatten(-1, (self.heads.n_heads, -1)).transpose(1, 2)

    def _project(self, x: Tensor, position: Tensor) -> tuple[Tensor, KeyValueBlock]:
        """Queries, and keys and values where they stand; without dot products the first two are zero."""
        *query_and_key, value = self.heads.split(x)
        query, key = query_and_key or [torch.zeros_like(value[..., :1])] * 2
        return query, KeyValueBlock(key, value, position.expand(x.shape[0], -1))

    def _attend(self, x: Tensor, position: Tensor, query: Tensor, seen: KeyValueBlock) -> Tensor:
        """Attention of the positions of `x` to the `seen` ones."""
        row, column = position.clamp(min=0), seen.position.clamp(min=0)
        like = seen.value
        terms = self._terms(x, row, column, query, seen.key)
        shapes = (*like.shape[:2], x.shape[1], -1), (*like.shape[:3], -1)
        of_rows, of_columns = (
            torch.cat([part.to(like.dtype).expand(shape) for part in side], dim=-1)
            for side, shape in zip(zip(*terms, strict=True), shapes, strict=True)
        )
        bias = self.table[:, row[..., None], column[:, None]].transpose(0, 1) if self.scores.random == "full" else None
        located = position.expand(len(like), -1), seen.position
        rule = AttentionMask(self.causal, None, seen.position >= 0, None, None, *located)
        return self.heads.join(self.heads.attend(of_rows, of_columns, like, rule, bias, scale=1.0))

    def _terms(
        self, x: Tensor, row: Int[Tensor, "#b l"], column: Int[Tensor, "b m"], query: Tensor, key: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Pairs of (b, h, l, w) and (b, h, m, w), each with its w, whose products are the scores but a full table's."""
        terms = []
        if self.scores.random == "factorised":
            terms.append((self.rows[:, row].transpose(0, 1), self.columns.mT[:, column].transpose(0, 1)))
        if self.scores.dense:
            terms.append((self.dense(x), self.dense_scores.weight[column][:, None]))
            if self.dense_scores.bias is not None:
                bias = self.dense_scores.bias[column][:, None, :, None]
                terms.append((torch.ones_like(bias[:1, :, :1]), bias))
        if self.scores.dot_product or not terms:  # without either, keys are zero
            terms.append((query * self.heads.head_dim**-0.5, key))
        return terms
