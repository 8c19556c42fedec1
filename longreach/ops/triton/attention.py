"""Attention on a GPU, in Triton: FlashAttention-2 (Dao 2023, https://arxiv.org/abs/2307.08691) for the whole operator.

Forward: 4 b h l m e operations where everyone sees everyone and values are as wide as keys, half of them with `causal`,
and at least (b h l (e + f) + b g m (e + f)) elements to read and write; so from a few hundred queries on arithmetic
is the bound, and in decoding the reading of keys and values.  Backward: 2.5 times the operations of the forward pass at
least, 3.5 times as it is done here, without atomics.  Memory besides the results: one float32 per query and head for
the gradients, two more while they are computed; in decoding the parts, (f + 1) float32 per part, query and head.

The kernels are in attention_kernels.py (forward), attention_gradient_kernels.py and attention_tile_kernels.py.

Axes: b batch, h query heads, g key-value heads, l queries, m keys, e and f widths.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from longreach.ops.attention_mask import AttentionMask
from longreach.ops.attention_operator import (
    ARGUMENTS,
    GRADIENT_ARGUMENTS,
    N_INPUTS,
    Options,
    register_gradients,
)
from longreach.ops.triton.attention_plan import WIDEST, Problem, n_splits, padded, tiling

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def refusal(
    query: Float[Tensor, "b h l e"],
    key: Float[Tensor, "b g m e"],
    value: Float[Tensor, "b g m f"],
    bias: Float[Tensor, "#b #h #l #m"] | None,
) -> str | None:
    """What there is no kernel for, besides other dtypes."""
    if not query.dtype == key.dtype == value.dtype:
        return "takes queries, keys and values of one dtype"
    if max(query.shape[3], value.shape[3]) > WIDEST:
        return f"has no kernel for heads wider than {WIDEST}"
    return "has no gradient for a bias" if bias is not None and bias.requires_grad else None


def triton_attention(
    inputs: tuple[Float[Tensor, "..."] | None, ...], mask: AttentionMask, options: Options
) -> Float[Tensor, "b h l f"]:
    """Attention of query, key, value, slopes and bias as longreach.ops.attention defines it."""
    return _forward(*inputs, *mask, *options)[0]


@torch.library.custom_op(
    "longreach::triton_attention", mutates_args=(), schema=f"({ARGUMENTS}) -> (Tensor output, Tensor log_total)"
)
def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The result, and log2 of the sum of exponentials of each query."""
    output, log_total = _allocate(*arguments)
    problem = _problem(arguments)
    if output.numel() == 0 or problem.m == 0:
        return output.zero_(), log_total.fill_(torch.inf)
    with _on(output.device):
        (_attend_to_parts if problem.few else _attend)(problem, output, log_total)
    return output, log_total


@_forward.register_fake
def _allocate(*arguments: Any) -> tuple[Tensor, Tensor]:
    query, value = arguments[0], arguments[2]
    output = query.new_empty(*query.shape[:3], value.shape[3])
    return output, query.new_empty(query.shape[:3], dtype=torch.float32)


@torch.library.custom_op(
    "longreach::triton_attention_gradients", mutates_args=(), schema=f"({GRADIENT_ARGUMENTS}) -> Tensor[]"
)
def _gradients(grad: Tensor, output: Tensor, kept: Tensor, needed: list[bool], *arguments: Any) -> list[Tensor]:
    """The gradients of those inputs that need one; `kept` is the logarithm of the sums."""
    problem = _problem(arguments)
    query, key, value, slopes = problem.query, problem.key, problem.value, problem.terms.slopes
    found = [x.new_empty(x.shape) for x in (query, key, value)]
    if min(x.numel() for x in (query, key, value)) == 0:
        found = [x.zero_() for x in found]
        found.append(query.new_zeros(query.shape[1]))
    else:
        delta, slope_grad = torch.empty_like(kept), None if slopes is None else torch.empty_like(kept)
        with _on(grad.device):
            grad = grad.contiguous()
            _gradient_of_queries(problem, (output, kept, grad, delta, found[0], slope_grad))
            if needed[1] or needed[2]:
                _gradient_of_keys(problem, (kept, grad, delta, found[1], found[2]))
        if slopes is not None and slope_grad is not None:
            found.append(slope_grad.sum((0, 2), dtype=torch.float64).to(slopes.dtype))
    return [x for x, wanted in zip(found, needed, strict=False) if wanted]


@_gradients.register_fake
def _allocate_gradients(grad: Tensor, output: Tensor, kept: Tensor, needed: list[bool], *arguments: Any) -> list:
    return [x.new_empty(x.shape) for x, wanted in zip(arguments[:N_INPUTS], needed, strict=True) if wanted]


register_gradients(_forward, _gradients)


def _problem(arguments: tuple[Any, ...]) -> Problem:
    mask = AttentionMask(*arguments[N_INPUTS : -len(Options._fields)])
    return Problem(arguments[:N_INPUTS], mask, Options(*arguments[-len(Options._fields) :]))


def _on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _attend(problem: Problem, output: Tensor, log_total: Tensor) -> None:
    from longreach.ops.triton import attention_kernels

    tile = tiling("forward", output.dtype, max(problem.e, problem.f), problem.l)
    attention_kernels.forward[(_cdiv(problem.l, tile.queries) * problem.b * problem.h,)](
        (*problem.heads, output, log_total), problem.given(tile), problem.terms, *problem.integers, 1, 0,
        C=problem.constants(tile), num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def _attend_to_parts(problem: Problem, output: Tensor, log_total: Tensor) -> None:
    """For few queries: the keys in parts, and then the parts together."""
    from longreach.ops.triton import attention_kernels

    n_rows = problem.h // problem.g * problem.l
    tile = tiling("split", output.dtype, max(problem.e, problem.f), n_rows)
    count, n_total = n_splits(problem, tile), log_total.numel()
    parts = output.new_empty(count, *output.shape, dtype=torch.float32)
    log_totals = log_total.new_empty(count, *log_total.shape)
    attention_kernels.forward[(count * _cdiv(n_rows, tile.queries) * problem.b * problem.g,)](
        (*problem.heads, parts, log_totals), problem.given(None), problem.terms, *problem.integers, count, n_total,
        C=problem.constants(tile, split=True), num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    attention_kernels.combine[(n_total,)](
        parts, log_totals, output, log_total, count, n_total,
        WIDTH=problem.f, F=padded(problem.f), num_warps=1,
    )  # fmt: skip


def _gradient_of_queries(problem: Problem, tensors: tuple[Tensor | None, ...]) -> None:
    from longreach.ops.triton import attention_gradient_kernels as kernels

    tile = tiling("queries", problem.query.dtype, max(problem.e, problem.f), problem.l)
    kernels.gradient_of_queries[(_cdiv(problem.l, tile.queries) * problem.b * problem.h,)](
        (*problem.heads, *tensors), problem.given(tile), problem.terms, *problem.integers, 1, 0,
        C=problem.constants(tile), num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def _gradient_of_keys(problem: Problem, tensors: tuple[Tensor, ...]) -> None:
    from longreach.ops.triton import attention_gradient_kernels as kernels

    tile = tiling("keys", problem.query.dtype, max(problem.e, problem.f), problem.l)
    kernels.gradient_of_keys[(_cdiv(problem.m, tile.keys) * problem.b * problem.g,)](
        (*problem.heads, *tensors), problem.given(tile, of_keys=True), problem.terms, *problem.integers, 1, 0,
        C=problem.constants(tile), num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
