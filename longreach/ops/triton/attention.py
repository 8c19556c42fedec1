"""Attention on a GPU, in Triton: FlashAttention-2 (Dao 2023, https://arxiv.org/abs/2307.08691) for the whole operator.

Forward: 4 b h l m e operations where everyone sees everyone and values are as wide as keys, half of them with `causal`,
and at least (b h l (e + f) + b g m (e + f)) elements to read and write; so from a few hundred queries on arithmetic
is the bound, and in decoding the reading of keys and values.  Backward: 2.5 times the operations of the forward pass at
least, 3.5 times as it is done here, without atomics.  Memory besides the results: two float32 per query and head for
the gradients, two more while they are computed; in decoding the parts, (f + 2) float32 per part, query and head.

The kernels are in attention_kernels.py (forward), attention_gradient_kernels.py and attention_tile_kernels.py.

Axes: b batch, h query heads, g key-value heads, l queries, m keys, e and f widths.
"""

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
from longreach.ops.triton import available
from longreach.ops.triton.attention_plan import WIDEST, Given, Problem, Tiling, n_splits, padded, tiling

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
    "longreach::triton_attention", mutates_args=(), schema=f"({ARGUMENTS}) -> (Tensor output, Tensor sums)"
)
def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The result, and the maximum and the inverse sum of exponentials of each query."""
    output, sums = _allocate(*arguments)
    problem = _problem(arguments)
    if output.numel() == 0 or problem.m == 0:
        return output.zero_(), sums.zero_()
    with available.on(output.device):
        (_attend_to_parts if problem.few else _attend)(problem, output, sums)
    return output, sums


@_forward.register_fake
def _allocate(*arguments: Any) -> tuple[Tensor, Tensor]:
    query, value = arguments[0], arguments[2]
    output = query.new_empty(*query.shape[:3], value.shape[3])
    return output, query.new_empty(2, *query.shape[:3], dtype=torch.float32)


@torch.library.custom_op(
    "longreach::triton_attention_gradients", mutates_args=(), schema=f"({GRADIENT_ARGUMENTS}) -> Tensor[]"
)
def _gradients(grad: Tensor, output: Tensor, kept: Tensor, needed: list[bool], *arguments: Any) -> list[Tensor]:
    """The gradients of those inputs that need one; `kept` are the sums."""
    problem = _problem(arguments)
    query, key, value, slopes = problem.query, problem.key, problem.value, problem.terms.slopes
    found = [x.new_empty(x.shape) for x in (query, key, value)]
    if min(x.numel() for x in (query, key, value)) == 0:
        found = [x.zero_() for x in found]
        found.append(query.new_zeros(query.shape[1]))
    else:
        delta, slope_grad = torch.empty_like(kept[0]), None if slopes is None else torch.empty_like(kept[0])
        with available.on(grad.device):
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


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _launch(
    kernel: Any, n_programs: int, problem: Problem, tile: Tiling, tensors: tuple[Tensor | None, ...],
    given: Given, n_parts: int | None = None,
) -> None:  # fmt: skip
    """One of the kernels that have the same arguments; with `n_parts` the keys are split."""
    constants = problem.constants(tile, split=n_parts is not None)
    kernel[(n_programs,)](
        (*problem.heads, *tensors), given, problem.terms, *problem.integers, n_parts or 1, problem.n_total,
        C=constants, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def _attend(problem: Problem, output: Tensor, sums: Tensor) -> None:
    from longreach.ops.triton.attention_kernels import forward

    tile = tiling("forward", output.dtype, problem.width, problem.l)
    n_programs = _cdiv(problem.l, tile.queries) * problem.b * problem.h
    _launch(forward, n_programs, problem, tile, (output, sums), problem.given(tile))


def _attend_to_parts(problem: Problem, output: Tensor, sums: Tensor) -> None:
    """For few queries: the keys in parts, and then the parts together."""
    from longreach.ops.triton import attention_kernels

    n_rows = problem.h // problem.g * problem.l
    tile = tiling("split", output.dtype, problem.width, n_rows)
    count = n_splits(problem, tile)
    parts = output.new_empty(count, *output.shape, dtype=torch.float32)
    part_sums = sums.new_empty(2, count, *sums.shape[1:])
    n_programs = count * _cdiv(n_rows, tile.queries) * problem.b * problem.g
    _launch(attention_kernels.forward, n_programs, problem, tile, (parts, part_sums), problem.given(None), count)
    combine: Any = attention_kernels.combine
    combine[(problem.n_total,)](
        parts, part_sums, output, sums, count, problem.n_total,
        WIDTH=problem.f, F=padded(problem.f), num_warps=1,
    )  # fmt: skip


def _gradient_of_queries(problem: Problem, tensors: tuple[Tensor | None, ...]) -> None:
    from longreach.ops.triton.attention_gradient_kernels import gradient_of_queries

    tile = tiling("queries", problem.query.dtype, problem.width, problem.l)
    n_programs = _cdiv(problem.l, tile.queries) * problem.b * problem.h
    _launch(gradient_of_queries, n_programs, problem, tile, tensors, problem.given(tile))


def _gradient_of_keys(problem: Problem, tensors: tuple[Tensor, ...]) -> None:
    from longreach.ops.triton.attention_gradient_kernels import gradient_of_keys

    tile = tiling("keys", problem.query.dtype, problem.width, problem.l)
    n_programs = _cdiv(problem.m, tile.keys) * problem.b * problem.g
    _launch(gradient_of_keys, n_programs, problem, tile, tensors, problem.given(tile, of_keys=True))
