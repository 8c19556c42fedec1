"""Softmax attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), exact.

    score_ij  = softcap tanh(scale q_i . k_j / softcap) - slope |p_i - s_j| + bias_ij        where i may see j
    weight_ij = exp(score_ij) / sum_j exp(score_ij)                                         each kept or dropped
    y_i       = sum_j weight_ij v_j

`softcap` bounds the scores (Gemma 2, https://arxiv.org/abs/2408.00118), `slope` is the penalty on distance of ALiBi
(https://arxiv.org/abs/2108.12409), one per head.  A query that may see nothing gets zero.

Axes: b batch, h query heads, g key-value heads (g divides h; each serves h / g neighbours), l queries, m keys,
e query and key width, f value width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longreach.errors import InputError
from longreach.ops.attention_dropout import kept_weights
from longreach.ops.attention_mask import NO_MASK, AttentionMask
from longreach.ops.attention_native import DTYPES as NATIVE_DTYPES
from longreach.ops.attention_native import native_attention
from longreach.ops.attention_operator import Options
from longreach.ops.attention_tiled import tiled_attention
from longreach.ops.backend import op
from longreach.ops.differentiable_once import differentiable_once
from longreach.ops.native import refusal
from longreach.ops.triton import available
from longreach.ops.triton.attention import DTYPES as TRITON_DTYPES
from longreach.ops.triton.attention import refusal as triton_refusal
from longreach.ops.triton.attention import triton_attention

FULL_VECTORS = 16
"""From so many queries on the compiled kernel, whose lanes they are, is not idle in part ..."""
FEW_PAIRS = 2**16
"""... and from so many pairs of queries and keys on it is not the call that costs."""


@op
def attention(
    query: Float[Tensor, "b h l e"],
    key: Float[Tensor, "b g m e"],
    value: Float[Tensor, "b g m f"],
    mask: AttentionMask = NO_MASK,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Float[Tensor, " h"] | None = None,
    bias: Float[Tensor, "#b #h #l #m"] | None = None,
    dropout: float = 0.0,
    dropout_seed: Int[Tensor, ""] | None = None,
) -> Float[Tensor, "b h l f"]:
    """Attend from every query to the keys that `mask` lets it see.  O(l m) time.

    `scale` defaults to e^-1/2.  `bias` may hold -inf and may be trained.  Which weights are dropped is a function of
    `dropout_seed` and of their indices, the same on every backend.
    The reference, which this is, needs O(l m) memory and can be differentiated any number of times.
    """
    _check(query, key, value, mask, dropout, dropout_seed)
    located = mask.located(query.shape[2], key.shape[2], query.device)
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes[:, None, None] * located.distance().abs()[:, None]
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~located.allowed()[:, None], -torch.inf)
    blind = (scores == -torch.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    if dropout_seed is not None and dropout > 0.0:
        kept = kept_weights(dropout_seed, dropout, scores.shape, slice(None), slice(None))
        weights = weights * kept / (1 - dropout)
    return weights.to(value.dtype) @ value


def _check(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, dropout: float, dropout_seed: Tensor | None
) -> None:
    """Raise InputError for arguments that no backend can make sense of."""
    mask.check()
    (b, h, _, e), (_, g, m, _) = query.shape, key.shape
    if key.shape != (b, g, m, e) or value.shape[:3] != key.shape[:3]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise InputError(f"query, key, value must be (b, h, l, e), (b, g, m, e), (b, g, m, f), but they are {shapes}")
    if h % g:
        raise InputError(f"{h} query heads cannot share {g} key-value heads evenly; use a divisor of {h}")
    if not 0.0 <= dropout < 1.0:
        raise InputError(f"dropout={dropout} must be at least 0 and below 1")
    if dropout > 0.0 and dropout_seed is None:
        raise InputError(f"dropout={dropout} needs dropout_seed, an integer tensor without axes, new in every call")


@attention.backend("tiled")
def _tiled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask = NO_MASK,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    dropout_seed: Tensor | None = None,
) -> Tensor:
    """O(b h (l + m)) memory, see longreach.ops.attention_tiled; the first derivative only."""
    _check(query, key, value, mask, dropout, dropout_seed)
    mask = mask.located(query.shape[2], key.shape[2], query.device)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    options = Options(factor, softcap, dropout, dropout_seed if dropout else None)
    return tiled_attention((query, key, value, alibi_slopes, bias), mask, options)


def _native_refuses(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask = NO_MASK, *, bias: Tensor | None = None, **_: object
) -> str | None:
    """Whether there is a kernel."""
    if bias is not None:
        return "has no kernel for a bias"
    return refusal(query.device, torch.promote_types(query.dtype, torch.float32), NATIVE_DTYPES)


@attention.backend("native", refuses=_native_refuses)
def _native(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask = NO_MASK,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    dropout_seed: Tensor | None = None,
) -> Tensor:
    """Tiles in compiled code, see longreach.ops.attention_native; the first derivative only."""
    _check(query, key, value, mask, dropout, dropout_seed)
    mask = mask.located(query.shape[2], key.shape[2], query.device)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    options = Options(factor, softcap, dropout, dropout_seed if dropout else None)
    return native_attention((query, key, value, alibi_slopes, None), mask, options)


def _sdpa_refuses(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask = NO_MASK,
    *,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    **_: object,
) -> str | None:
    """Why torch cannot do this exactly and in linear memory."""
    l, m = query.shape[2], key.shape[2]
    uneven = mask.key_mask is not None or bias is not None
    missing = {
        "soft-cap": softcap is not None,
        "ALiBi": alibi_slopes is not None,
        "dropout in linear memory": dropout > 0.0,
        "sliding window": mask.window is not None,
        "packed segments": mask.query_segment is not None,
        "positions other than the index": mask.query_position is not None,
        "trainable bias in linear memory": bias is not None and bias.requires_grad,
        "values of another width than the keys in linear memory": value.shape[3] != query.shape[3],
        "causal mask aligned at the last position": mask.causal and l not in (1, m),
        "causal mask together with padding or a bias": mask.causal and l > 1 and uneven,
    }
    return next((f"torch has no {feature}" for feature, needed in missing.items() if needed), None)


def _sdpa_yields(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask = NO_MASK, *, bias: Tensor | None = None, **_: object
) -> str | None:
    """Where the compiled kernel is faster; measured in docs/performance.md."""
    b, h, l, m = *query.shape[:3], key.shape[2]
    if _native_refuses(query, key, value, mask, bias=bias) or l < FULL_VECTORS or b * h * l * m < FEW_PAIRS:
        return None
    return "compiled tiles are twice as fast"


@attention.backend("sdpa", refuses=_sdpa_refuses, yields=_sdpa_yields)
def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask = NO_MASK,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    dropout_seed: Tensor | None = None,
) -> Tensor:
    """The fused kernel that torch brings (FlashAttention on GPUs, tiles on CPUs)."""
    _check(query, key, value, mask, dropout, dropout_seed)
    allowed = None if mask.key_mask is None else mask.key_mask[:, None, None]
    if bias is not None:
        allowed = bias.to(query.dtype) if allowed is None else torch.where(allowed, bias.to(query.dtype), -torch.inf)
    causal = mask.causal and query.shape[2] > 1
    grouped = query.shape[1] != key.shape[1]
    query, key, value = (differentiable_once(x, "attention") for x in (query, key, value))
    return scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def _triton_refuses(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask = NO_MASK, *, bias: Tensor | None = None, **_: object
) -> str | None:
    return available.refusal(query.device, query.dtype, TRITON_DTYPES) or triton_refusal(query, key, value, bias)


def _triton_yields(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask = NO_MASK,
    *,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    **_: object,
) -> str | None:
    """Where torch's kernel is taken though ours could run; not measured, see docs/gpu.md."""
    if reason := available.interpretation(query.device):
        return reason
    plain = mask.key_mask is None and bias is None
    if plain and not _sdpa_refuses(
        query, key, value, mask, softcap=softcap, alibi_slopes=alibi_slopes, dropout=dropout
    ):
        return "torch has a kernel for exactly this"
    return None


@attention.backend("triton", refuses=_triton_refuses, yields=_triton_yields)
def _triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask = NO_MASK,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    dropout_seed: Tensor | None = None,
) -> Tensor:
    """FlashAttention-2 on a GPU, see longreach.ops.triton.attention; the first derivative only."""
    _check(query, key, value, mask, dropout, dropout_seed)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    options = Options(factor, softcap, dropout, dropout_seed if dropout else None)
    return triton_attention((query, key, value, alibi_slopes, bias), mask, options)
