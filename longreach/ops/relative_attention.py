"""Attention with one head, a bias for every distance and a choice of weights, as Mega has it.

    score_ij = q_i . k_j / count_i + bias[centre + s_j - p_i]                  p, s: positions of queries and keys

    softmax   weight_ij = exp(score_ij) / sum_j exp(score_ij)                  count_i = 1
    relu2     weight_ij = max(score_ij, 0)^2                                   https://arxiv.org/abs/2109.08668
    laplace   weight_ij = (1 + erf((score_ij - mean) / (deviation sqrt 2))) / 2

    y_i = sum_j weight_ij v_j                                                  over the keys j that i may see

Without the normalisation of a softmax, scores are divided by a number of keys: of all up to the query if attention is
causal, of those that are real if it is not.  (Mega, https://arxiv.org/abs/2209.10655, section 3.3)

Axes: b batch, l queries, m keys, e query and key width, f value width, r distances, of which the middle one is 0.
"""

from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longreach.errors import InputError
from longreach.ops.attention_dropout import kept_weights
from longreach.ops.attention_mask import NO_MASK, AttentionMask
from longreach.ops.backend import op

Weighting = Literal["softmax", "relu2", "laplace"]

MEAN, DEVIATION = 0.707107, 0.282095
"""Of laplace: sqrt(1/2) and sqrt(1/(4 pi)), with which it is near to relu2, rounded to six digits as published."""

TILE = 2**22
"""About so many weights are held at a time."""


class Weights(NamedTuple):
    """How products become weights, and which of them are dropped."""

    weighting: Weighting
    dropout: float
    dropout_seed: Tensor | None


def relative_weights(
    products: Float[Tensor, "b l m"], bias: Float[Tensor, " r"], mask: AttentionMask, weighting: Weighting
) -> Float[Tensor, "b l m"]:
    """The weights for the products q . k, in float32 or wider; `mask` has positions.

    A query that may see no key gets finite weights without meaning.
    """
    products = products.to(torch.promote_types(products.dtype, torch.float32))
    place = bias.shape[0] // 2 - mask.distance()
    offset = bias[place.clamp(0, bias.shape[0] - 1)]
    if weighting == "softmax":
        scores = products + offset
        return scores.masked_fill(~mask.allowed(), torch.finfo(scores.dtype).min).softmax(-1)
    scores = products / _count(mask) + offset
    if weighting == "relu2":
        weights = scores.relu().square()
    else:
        weights = (1 + torch.erf((scores - MEAN) / (DEVIATION * 2**0.5))) / 2
    return weights.masked_fill(~mask.allowed(), 0.0)


def _count(mask: AttentionMask) -> Tensor:
    """By how many keys a query's scores are divided, (b or 1, l or 1, 1)."""
    assert mask.query_position is not None
    assert mask.key_position is not None
    if mask.causal:
        count = mask.query_position + 1
    else:
        real = torch.ones_like(mask.key_position) if mask.key_mask is None else mask.key_mask
        count = real.sum(1, keepdim=True)
    return count.clamp(min=1)[..., None]


@op
def relative_attention(
    query: Float[Tensor, "b l e"],
    key: Float[Tensor, "b m e"],
    value: Float[Tensor, "b m f"],
    bias: Float[Tensor, " r"],
    mask: AttentionMask = NO_MASK,
    *,
    weighting: Weighting = "softmax",
    dropout: float = 0.0,
    dropout_seed: Int[Tensor, ""] | None = None,
) -> Float[Tensor, "b l f"]:
    """Attend from every query to the keys that `mask` lets it see; the definition takes O(l m) time and memory.

    Scores are not scaled: give a softmax scaled queries.  Distances beyond `bias` take its nearest end.  What a query
    gets that may see no key has no meaning.  Which weights are dropped is a function of `dropout_seed` and of their
    indices, the same on every backend.
    """
    _check(query, key, value, bias, dropout, dropout_seed)
    mask = _located(mask, query, key, weighting)
    return _attend(query, key, value, bias, mask, Weights(weighting, dropout, dropout_seed), 0, query.shape[1])


def _check(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float, seed: Tensor | None) -> None:
    if query.shape[::2] != key.shape[::2] or key.shape[:2] != value.shape[:2]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise InputError(f"relative_attention: query, key, value must be (b, l, e), (b, m, e), (b, m, f), not {shapes}")
    if bias.shape[0] % 2 == 0:
        raise InputError(f"relative_attention: bias has {bias.shape[0]} entries; as many on both sides of 0 is odd")
    if not 0.0 <= dropout < 1.0 or (dropout > 0.0 and seed is None):
        raise InputError(f"relative_attention: dropout={dropout} must be in [0, 1), and above 0 it needs dropout_seed")


def _located(mask: AttentionMask, query: Tensor, key: Tensor, weighting: Weighting) -> AttentionMask:
    """The rule with positions; for a softmax a row without any real key has only real ones, so that it has a sum."""
    if weighting == "softmax" and mask.key_mask is not None:
        mask = mask._replace(key_mask=mask.key_mask | ~mask.key_mask.any(1, keepdim=True))
    return mask.located(query.shape[1], key.shape[1], query.device)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: AttentionMask, how: Weights, first: int, length: int
) -> Tensor:
    """The queries from the one numbered `first` out of `length`."""
    weights = relative_weights(query @ key.mT, bias, mask, how.weighting)
    if how.dropout_seed is not None and how.dropout > 0.0:
        shape, rows = (len(weights), 1, length, weights.shape[2]), slice(first, first + weights.shape[1])
        kept = kept_weights(how.dropout_seed, how.dropout, shape, rows, slice(None))
        weights = weights * kept[:, 0] / (1 - how.dropout)
    return weights.to(value.dtype) @ value


def _rows(query: Tensor, key: Tensor) -> int:
    """How many queries make a tile."""
    return max(1, TILE // (query.shape[0] * key.shape[1]))


def _one_tile(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    mask: AttentionMask = NO_MASK,
    *,
    weighting: Weighting = "softmax",
    dropout: float = 0.0,
    dropout_seed: Tensor | None = None,
) -> str | None:
    """Where nothing is to be gained by cutting."""
    return "all weights fit into one tile" if _rows(query, key) >= query.shape[1] else None


@relative_attention.backend("tiled", yields=_one_tile)
def _tiled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    mask: AttentionMask = NO_MASK,
    *,
    weighting: Weighting = "softmax",
    dropout: float = 0.0,
    dropout_seed: Tensor | None = None,
) -> Tensor:
    """Some queries at a time; their weights are computed again for the gradient, so that memory is O(l + m)."""
    _check(query, key, value, bias, dropout, dropout_seed)
    in_order = mask.causal and mask.query_position is None  # then no tile sees more than a beginning of the keys
    mask, how = _located(mask, query, key, weighting), Weights(weighting, dropout, dropout_seed)
    length, step, tiles = query.shape[1], _rows(query, key), []
    for first in range(0, length, step):
        rows = slice(first, min(first + step, length))
        seen = slice(0, key.shape[1] - length + rows.stop if in_order else key.shape[1])
        arguments = (query[:, rows], key[:, seen], value[:, seen], bias, mask.tile(rows, seen), how, first, length)
        tiles.append(cast(Tensor, checkpoint(_attend, *arguments, use_reentrant=False, preserve_rng_state=False)))
    return torch.cat(tiles, dim=1)
