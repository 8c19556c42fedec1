"""The fused loss of a language model by the compiled kernels of attention (csrc/attention.cpp).

The softmax of the logits of a position is that of the scores by which a query, `hidden`, sees all keys, the rows of
`weight`.  Its maximum and sum give the loss.  Its gradients are those of attention whose values are all 1 and whose
result counts for nothing (delta = 0):

    d logit_nv = grad_n softmax(logit_n)_v - grad_n [v = target_n]

and what belongs to the targets is added afterwards.  Where products are of bfloat16, `grad` goes in as a sum of three.

Axes: n positions, d width, v vocabulary.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longreach.ops.attention_mask import AttentionMask
from longreach.ops.attention_native import native_gradients
from longreach.ops.attention_operator import Options
from longreach.ops.differentiable_once import second_derivative_message
from longreach.ops.native import LIBRARY

PARTS = 3
"""Numbers of bfloat16 whose sum is one of float32."""
CHUNK = 1024
"""Positions whose targets are looked up at a time."""

ARGUMENTS = "Tensor hidden, Tensor weight, Tensor target, ScalarType dtype"
LIBRARY.define(f"linear_cross_entropy({ARGUMENTS}) -> (Tensor losses, Tensor softmax)")
LIBRARY.define(f"linear_cross_entropy_adjoint(Tensor grad, Tensor softmax, {ARGUMENTS}) -> (Tensor, Tensor)")


def native_cross_entropy(
    hidden: Float[Tensor, "n d"], weight: Float[Tensor, "v d"], target: Int[Tensor, " n"], dtype: torch.dtype
) -> Float[Tensor, " n"]:
    """What longreach.ops.cross_entropy defines, without bias, on the CPU; products in `dtype` or wider."""
    return torch.ops.longreach.linear_cross_entropy(hidden, weight, target, dtype)[0]


def _as_attention(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[Any, ...]:
    """The arguments of the operators of attention."""
    query, key = (x.to(dtype)[None, None] for x in (hidden, weight))
    value = query.new_ones(1, 1, len(weight), PARTS)
    mask = AttentionMask().located(len(hidden), len(weight), hidden.device)
    return query, key, value, None, None, *mask, *Options(1.0, None, 0.0, None)


def _forward(hidden: Tensor, weight: Tensor, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    softmax = torch.ops.longreach.attention(*_as_attention(hidden, weight, dtype))[1][0, 0]
    maximum, inverse = softmax.unbind(1)
    losses = maximum * math.log(2) - inverse.log()
    for loss, rows, words in zip(*(x.split(CHUNK) for x in (losses, hidden, target.clamp(min=0))), strict=True):
        loss -= torch.linalg.vecdot(*(x.to(dtype).to(softmax.dtype) for x in (rows, weight[words])))
    return losses.clamp_(min=0.0).masked_fill_(target < 0, 0.0), softmax  # rounding may leave less than nothing


def _adjoint(
    grad: Tensor, softmax: Tensor, hidden: Tensor, weight: Tensor, target: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    grad, index = grad.masked_fill(target < 0, 0.0)[:, None], target.clamp(min=0)
    arguments = _as_attention(hidden, weight, dtype)
    parts = _parts(grad, dtype)[None, None]
    needed = [True, True, False, False, False]
    gradients = native_gradients(parts, torch.zeros_like(parts), softmax[None, None], needed, *arguments)
    hidden_grad, weight_grad = (x[0, 0] for x in gradients[:2] if x is not None)
    query, key, wide = arguments[0][0, 0], arguments[1][0, 0], softmax.dtype
    for found, given, rows, words in zip(*(x.split(CHUNK) for x in (hidden_grad, grad, query, index)), strict=True):
        found.addcmul_(key[words].to(wide), given, value=-1)
        weight_grad.index_add_(0, words, rows.to(wide) * given, alpha=-1)
    return hidden_grad.to(hidden.dtype).contiguous(), weight_grad.to(weight.dtype).contiguous()


def _parts(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Columns that add up to `grad`, each of which is left as it is when rounded to bfloat16."""
    parts = grad.new_zeros(len(grad), PARTS)
    for i in range(PARTS):
        parts[:, i : i + 1] = (grad - parts.sum(1, keepdim=True)).to(dtype)
    return parts


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], *inputs[:3])
    ctx.dtype = inputs[3]


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.longreach.linear_cross_entropy_adjoint(grad, *ctx.saved_tensors, ctx.dtype), None, None


LIBRARY.impl("linear_cross_entropy", _forward, "CPU")
LIBRARY.impl("linear_cross_entropy_adjoint", _adjoint, "CPU")


@torch.library.register_fake("longreach::linear_cross_entropy")
def _fake(hidden: Tensor, weight: Tensor, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(dtype, torch.float32)
    return hidden.new_empty(len(hidden), dtype=wide), hidden.new_empty(len(hidden), 2, dtype=wide)


@torch.library.register_fake("longreach::linear_cross_entropy_adjoint")
def _fake_adjoint(grad: Tensor, softmax: Tensor, hidden: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight)


def _refuse_backward(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(second_derivative_message("linear_cross_entropy"))


torch.library.register_autograd("longreach::linear_cross_entropy", _backward, setup_context=_save)
torch.library.register_autograd("longreach::linear_cross_entropy_adjoint", _refuse_backward)
