"""Causal attention in bfloat16: ours, torch's fused kernels one by one, and all scores in memory.

Axes: b batch, h heads, l length, e width of a head.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
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
UNFUSED = "all scores"
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
    return [cell for contest in contests for cell in contest.cells(rank=1)]


def _inputs(sizes: Sizes, width: int, length: int, device: str) -> list[Any]:
    batch, heads = max(1, sizes.attention_tokens // length), sizes.attention_width // width
    return [leaf(batch, heads, length, width, device=device, dtype=torch.bfloat16) for _ in range(3)]


def _operations(inputs: list[Any]) -> float:
    """Of both products, for half of the pairs."""
    b, h, l, e = inputs[0].shape
    return 2.0 * b * h * l * l * e


def _ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return ours("attention")(query, key, value, AttentionMask(causal=True))


def _fused(query: Tensor, key: Tensor, value: Tensor, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):
        return baselines.causal_attention(query, key, value)


def _all_scores(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As it is written on paper."""
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    future = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ value
