"""Causal attention in bfloat16: ours, torch's fused kernels one by one, and all scores in memory.

With a window, and for documents packed into one sequence, torch has but the mask of all pairs.

Axes: b batch, h heads, l length, e width of a head.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from longreach.bench import baselines
from longreach.bench.gpu.cells import Cell, Contest
from longreach.bench.gpu.sides import OURS, leaf, ours
from longreach.bench.gpu.sizes import Sizes
from longreach.ops import AttentionMask

SECTION = "attention"
FUSED = {
    "torch flash": SDPBackend.FLASH_ATTENTION,
    "torch cuDNN": SDPBackend.CUDNN_ATTENTION,
    "torch efficient": SDPBackend.EFFICIENT_ATTENTION,
    "torch math": SDPBackend.MATH,
}
UNFUSED, MASKED = "all scores", "torch, masked"
WINDOWS, DOCUMENTS = 16, 8
"""A window is this part of the length; so many documents are packed into a sequence."""
MINOR = ("torch efficient", "torch math", UNFUSED)
MAIN = (1 << 10, 1 << 12, 1 << 14)
JUDGED = 1 << 12
"""Up to this length results are judged: the judge keeps all scores, in float32."""
BACKWARD = 2.5
"""Products of the backward pass for each of the forward one: five for two."""


def attention_cells(sizes: Sizes) -> list[Cell]:
    """For every width of a head; operations count only the pairs that may meet."""
    sides: dict[str, Callable[..., Tensor]] = {OURS: _ours}
    sides |= {name: partial(_fused, backend=backend) for name, backend in FUSED.items()}
    sides[UNFUSED] = _all_scores
    contests = [
        Contest(
            *(SECTION, f"heads of {width}", sizes.attention_lengths),
            inputs=partial(_inputs, sizes, width),
            sides=sides,
            exact=_all_scores,
            operations=_operations,
            main=MAIN,
            minor=MINOR,
            judged=JUDGED,
        )
        for width in sizes.head_sizes
    ]
    contests += [_sparse(sizes, name) for name in ("window", "packed")]
    return [cell for contest in contests for cell in contest.cells(rank=1)]


def _sparse(sizes: Sizes, name: str) -> Contest:
    """Where few of the pairs may meet, at some of the lengths: the mask of all is large."""
    rule = {"window": _window, "packed": _packed}[name]
    masked = partial(_masked, rule)
    return Contest(
        *(SECTION, f"{name}, heads of {sizes.head_sizes[0]}", sizes.attention_lengths[-5:-1:2]),
        inputs=partial(_inputs, sizes, sizes.head_sizes[0]),
        sides={OURS: lambda query, key, value: _attend(query, key, value, rule(query)), MASKED: masked},
        exact=masked,
        operations=lambda inputs: _operations(inputs) * _met(rule),
        main=MAIN,
        judged=JUDGED,
    )


def _window(query: Tensor) -> AttentionMask:
    return AttentionMask(causal=True, window=max(1, query.shape[2] // WINDOWS))


def _packed(query: Tensor) -> AttentionMask:
    b, _, l, _ = query.shape
    document = (torch.arange(l, device=query.device) // -(-l // DOCUMENTS)).expand(b, -1)
    return AttentionMask(causal=True, query_segment=document, key_segment=document)


def _met(rule: Callable[[Tensor], AttentionMask]) -> float:
    """The pairs that may meet, as a part of those in causal attention of one document."""
    part = 1 / (WINDOWS if rule is _window else DOCUMENTS)
    return part * (2 - part) if rule is _window else part


def _masked(rule: Callable[[Tensor], AttentionMask], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch's choice among its kernels, told which pairs may meet."""
    length = query.shape[2]
    allowed = rule(query[:1]).located(length, length, query.device).allowed()[:, None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)


def _inputs(sizes: Sizes, width: int, length: int, device: str) -> list[Any]:
    batch, heads = max(1, sizes.attention_tokens // length), sizes.attention_width // width
    return [leaf(batch, heads, length, width, device=device, dtype=torch.bfloat16) for _ in range(3)]


def _operations(inputs: list[Any]) -> float:
    """Of both products, for half of the pairs."""
    b, h, l, e = inputs[0].shape
    return 2.0 * b * h * l * l * e


def _ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _attend(query, key, value, AttentionMask(causal=True))


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask) -> Tensor:
    return ours("attention")(query, key, value, mask)


def _fused(query: Tensor, key: Tensor, value: Tensor, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):
        return baselines.causal_attention(query, key, value)


def _all_scores(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As it is written on paper."""
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    future = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ value
