"""The fused loss of a language model on a GPU, in Triton; defined in longreach.ops.cross_entropy.

As in Cut Cross-Entropy (Wijmans et al. 2024, https://arxiv.org/abs/2411.09009), a tile of logits is a product on tensor
cores and is never stored.  Forward, a program has a block of positions and a part of the vocabulary; it keeps a running
maximum, the sum of exponentials, and the target's logit, and torch joins the parts.  Backward, one kernel runs twice:
for the gradient of `hidden` it walks over words, for that of `weight` over positions.  Each time it makes the logits
again, and adds to rows that no other program touches: no locks, no atomics, the same bits every time.

    d loss_n / d logit_nv = softmax(logit_n)_v - [v = target_n]

The products take this times grad / max |grad|, which is below 1, so that float16 holds it however small `grad` is.

Operations: 2 n d v forward; 8 n d v backward, where 6 would do if the logits were made once.  Memory: the rows of each
gradient in float32, and where these are few, those of all parts: 2 x 132 x 128 rows at most.

Axes: n positions, d width, v words of the vocabulary.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from longreach.ops.differentiable_once import second_derivative_message
from longreach.ops.native import LIBRARY
from longreach.ops.triton import available

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MULTIPROCESSORS = 132
"""Of a GPU of the Hopper generation, each of which runs one program at a time."""
FEW_TILES = 4
"""No part of the other matrix has less, where there are as many."""

ARGUMENTS = "Tensor hidden, Tensor weight, Tensor target, Tensor? bias, ScalarType dtype"
LIBRARY.define(f"linear_cross_entropy_triton({ARGUMENTS}) -> (Tensor losses, Tensor kept)")
LIBRARY.define(f"linear_cross_entropy_triton_adjoint(Tensor grad, Tensor kept, bool[] needed, {ARGUMENTS}) -> Tensor[]")


class Tiling(NamedTuple):
    """Positions and words of a tile, columns of a step, warps, and how many steps are loaded."""

    positions: int
    words: int
    columns: int
    num_warps: int
    num_stages: int


TILINGS = {2: Tiling(128, 128, 64, 8, 3), 4: Tiling(64, 128, 32, 8, 2)}
"""By bytes of an element; the same for all kernels, whose logits must be the same."""
UNIT = 8
"""Widths are padded to multiples of it."""
WAVES = {"sums": 4, "gradient_of_hidden": 2, "gradient_of_weight": 2}
"""Programs for each multiprocessor, at most by splitting; parts of gradients take memory."""


def triton_cross_entropy(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    target: Int[Tensor, " n"],
    bias: Float[Tensor, " v"] | None,
    dtype: torch.dtype,
) -> Float[Tensor, " n"]:
    """What longreach.ops.cross_entropy defines, with products of numbers in `dtype`; float32.

    Kept for the gradients: the arguments, and two numbers a position.
    """
    return torch.ops.longreach.linear_cross_entropy_triton(hidden, weight, target, bias, dtype)[0]


def _kernels() -> ModuleType:
    """They import Triton, so not before they are needed."""
    from longreach.ops.triton import cross_entropy_kernels

    return cross_entropy_kernels


class Plan(NamedTuple):
    """How one kernel is launched."""

    n_programs: int
    n_parts: int
    tiles_each: int


def _plan(kernel: str, n_positions: int, n_words: int, tile: Tiling) -> Plan:
    """What is walked over is one part, or several where the programs for the rest do not occupy the device."""
    own, other = -(-n_positions // tile.positions), -(-n_words // tile.words)
    if kernel == "gradient_of_weight":
        own, other = other, own
    parts = max(1, min(WAVES[kernel] * MULTIPROCESSORS // own, other // FEW_TILES))
    tiles_each = -(-other // parts)
    parts = -(-other // tiles_each)
    return Plan(own * parts, parts, tiles_each)


def _launch(kernel: str, tensors: tuple[Tensor | None, ...], row_sizes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Runs a kernel; returns what it finds, in float32, of every part: (parts, *size) for each of the sizes."""
    hidden, weight = tensors[:2]
    assert hidden is not None
    assert weight is not None
    tile = TILINGS[hidden.dtype.itemsize]
    plan = _plan(kernel, len(hidden), len(weight), tile)
    found = [torch.empty(plan.n_parts, *size, dtype=torch.float32, device=hidden.device) for size in row_sizes]
    sizes = len(hidden), len(weight), hidden.shape[1] // UNIT, plan.tiles_each
    with available.on(hidden.device):
        getattr(_kernels(), kernel)[(plan.n_programs,)](
            *tensors, *found, *sizes, BM=tile.positions, BN=tile.words, BK=tile.columns,
            PRECISION="tf32x3" if hidden.dtype == torch.float32 else "ieee",
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return found


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x`, or a copy of it, in `dtype`, rows without gaps that begin where blocks of 16 bytes do, padded with zeros."""
    x = x.to(dtype).contiguous()
    if x.shape[1] % UNIT:
        return F.pad(x, (0, -x.shape[1] % UNIT))
    return x.clone() if x.data_ptr() % 16 else x


def _forward(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The losses, and the maximum and inverse sum of exponentials of each position: their logarithm loses digits."""
    n = len(hidden)
    if n == 0 or len(weight) == 0:
        return hidden.new_zeros(n, dtype=torch.float32), hidden.new_zeros(2, n, dtype=torch.float32)
    bias = None if bias is None else bias.contiguous()
    tensors = _rows(hidden, dtype), _rows(weight, dtype), bias, target.contiguous()
    maxima, totals, picked = _launch("sums", tensors, [(n,)] * 3)
    maximum = maxima.amax(0)
    total = (totals * (maxima - maximum).exp()).sum(0)
    losses = maximum - picked.sum(0) + total.log()
    return losses.masked_fill_(target < 0, 0.0), torch.stack([maximum, total.reciprocal()])


def _adjoint(grad: Tensor, kept: Tensor, needed: list[bool], *arguments: Any) -> list[Tensor]:
    """The gradients of those of hidden, weight and bias that need one."""
    hidden, weight, target, bias, dtype = arguments
    if len(hidden) == 0 or len(weight) == 0:
        return [torch.zeros_like(x) for x, wanted in zip((hidden, weight, bias), needed, strict=True) if wanted]
    grad = grad.masked_fill(target < 0, 0.0)
    largest = grad.abs().amax()
    largest = largest.where(largest > 0, 1.0)
    terms = None if bias is None else bias.contiguous(), target.contiguous(), kept, grad / largest
    tensors = _rows(hidden, dtype), _rows(weight, dtype), *terms
    found: list[Tensor] = []
    if needed[0]:
        found += _launch("gradient_of_hidden", tensors, [tensors[0].shape])
    if needed[1] or needed[2]:
        of_rows = _launch("gradient_of_weight", tensors, [tensors[1].shape, weight.shape[:1]])
        found += [x for x, wanted in zip(of_rows, needed[1:], strict=True) if wanted]
    inputs = [x for x, wanted in zip((hidden, weight, bias), needed, strict=True) if wanted and x is not None]
    totals = (parts[0] if len(parts) == 1 else parts.sum(0) for parts in found)
    scaled = (total.mul_(largest)[..., : x.shape[-1]] for total, x in zip(totals, inputs, strict=True))
    return [x.to(y.dtype).contiguous() for x, y in zip(scaled, inputs, strict=True)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.dtype = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    kept, *tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    needed = [wanted[0], wanted[1], wanted[3]]
    adjoint = torch.ops.longreach.linear_cross_entropy_triton_adjoint
    found = iter(adjoint(grad, kept, needed, *tensors, ctx.dtype))
    of_hidden, of_weight, of_bias = (next(found) if need else None for need in needed)
    return of_hidden, of_weight, None, of_bias, None


def _refuse_backward(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(second_derivative_message("linear_cross_entropy"))


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("linear_cross_entropy_triton", _forward, _device)
    LIBRARY.impl("linear_cross_entropy_triton_adjoint", _adjoint, _device)


@torch.library.register_fake("longreach::linear_cross_entropy_triton")
def _fake(hidden: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    losses = hidden.new_empty(len(hidden), dtype=torch.float32)
    return losses, losses.new_empty(2, len(hidden))


@torch.library.register_fake("longreach::linear_cross_entropy_triton_adjoint")
def _fake_adjoint(grad: Tensor, kept: Tensor, needed: list[bool], *arguments: Any) -> list[Tensor]:
    hidden, weight, _, bias, _ = arguments
    return [x.new_empty(x.shape) for x, wanted in zip((hidden, weight, bias), needed, strict=True) if wanted]


torch.library.register_autograd("longreach::linear_cross_entropy_triton", _backward, setup_context=_save)
torch.library.register_autograd("longreach::linear_cross_entropy_triton_adjoint", _refuse_backward)
