"""The loss of a language model, fused with its output projection.

    loss_n = log sum_v exp(logit_nv) - logit_{n, target_n}        logit = hidden weight^T + bias

A million positions of a vocabulary of 50,000 would be 200 GB of logits.  The chunked backend makes the logits of a few
positions at a time, keeps none of them, and makes them again for the gradients:

    d loss_n / d logit_nv = softmax(logit_n)_v - [v = target_n]

Axes: n positions, d width, v vocabulary.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.ops.attention_native import DTYPES
from longreach.ops.backend import op
from longreach.ops.cross_entropy_native import native_cross_entropy
from longreach.ops.differentiable_once import differentiable_once
from longreach.ops.linear import linear
from longreach.ops.native import refusal
from longreach.ops.triton import available
from longreach.ops.triton.cross_entropy import DTYPES as TRITON_DTYPES
from longreach.ops.triton.cross_entropy import triton_cross_entropy

IGNORED = -100
"""The target of a position that has no loss, as in torch."""
CHUNK = 2**20
"""About so many logits are made at a time, few enough to stay in the cache ..."""
MIN_ROWS = 256
"""... but at least so many rows of them, because each chunk also reads and writes arrays as large as the weight."""
KEPT = 2**25
"""Up to so many logits (128 MB) are kept, which saves the time of making them again: 15% in float32."""
KEPT_LOW = 2**22
"""The same where products are in 16 bits: there making them again costs less than reading them from memory."""

FEW = 2**16
"""Up to so many logits it is the call of the compiled kernel that costs ..."""
FULL_VECTORS = 16
"""... and below so many positions its lanes, which they are, are idle in part."""


@op
def linear_cross_entropy(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    target: Int[Tensor, " n"],
    bias: Float[Tensor, " v"] | None = None,
) -> Float[Tensor, " n"]:
    """The loss of each position in nats, float32 or wider; zero, without gradient, where the target is -100.

    The product is made in the dtype of autocast where that is on, the softmax in float32 or wider.
    Raises InputError for a target outside the vocabulary.  O(n d v) time; the reference keeps all n v logits.
    """
    _check_targets(target, weight.shape[0])
    logits = linear(hidden, weight, bias)
    return F.cross_entropy(logits.to(_wide(hidden)), target.long(), reduction="none", ignore_index=IGNORED)


def _check_targets(target: Tensor, vocab_size: int) -> None:
    """Raise InputError naming the first target that is not a token."""
    wrong = (target != IGNORED) & ((target < 0) | (target >= vocab_size))
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise InputError(
            f"target[{index}] = {int(target[index])} is not a token of this vocabulary of {vocab_size}; "
            f"use 0 to {vocab_size - 1}, or {IGNORED} where there is nothing to predict"
        )


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of products with `x`: its own, or that of autocast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _chunked_yields(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> str | None:
    """Where memory is no concern, keeping the logits is faster."""
    if hidden.shape[0] * weight.shape[0] <= (KEPT_LOW if _product_dtype(hidden).itemsize < 4 else KEPT):
        return f"{hidden.shape[0]} x {weight.shape[0]} logits are few enough to keep them"
    return None


@linear_cross_entropy.backend("chunked", yields=_chunked_yields)
def _chunked(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
    """O(n + d v) memory; computes the logits twice."""
    _check_targets(target, weight.shape[0])
    once = [None if x is None else differentiable_once(x, "linear_cross_entropy") for x in (hidden, weight, bias)]
    dtype = _product_dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkedCrossEntropy.apply(*once, target.long(), dtype)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loops over chunks of positions; products in `dtype`, everything else in float32 or wider."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, dtype: torch.dtype
    ) -> Tensor:
        losses = torch.empty_like(target, dtype=_wide(hidden))
        cast_weight = weight.to(dtype)
        for part in _chunks(hidden, weight):
            logits = _logits(hidden[part].to(dtype), cast_weight, bias)
            losses[part] = F.cross_entropy(logits, target[part], reduction="none", ignore_index=IGNORED)
        ctx.save_for_backward(hidden, weight, bias, target)
        ctx.dtype = dtype
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias, target = ctx.saved_tensors
        grad = grads[0].masked_fill(target == IGNORED, 0.0)[:, None]
        cast_weight = weight.to(ctx.dtype)
        hidden_grad = torch.empty_like(hidden)
        weight_grad, bias_grad = weight.new_zeros(weight.shape, dtype=grad.dtype), grad.new_zeros(weight.shape[0])
        for part in _chunks(hidden, weight):
            cast_hidden = hidden[part].to(ctx.dtype)
            logit_grad = _logits(cast_hidden, cast_weight, bias).softmax(-1).mul_(grad[part])
            logit_grad.scatter_add_(1, target[part, None].clamp(min=0), -grad[part])
            bias_grad += logit_grad.sum(0)
            logit_grad = logit_grad.to(ctx.dtype)
            hidden_grad[part] = logit_grad @ cast_weight
            weight_grad += logit_grad.mT @ cast_hidden
        bias_grad = None if bias is None else bias_grad.to(bias.dtype)
        return hidden_grad, weight_grad.to(weight.dtype), bias_grad, None, None


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    size = max(MIN_ROWS, CHUNK // weight.shape[0])
    return [slice(start, start + size) for start in range(0, hidden.shape[0], size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(hidden, weight, None if bias is None else bias.to(weight.dtype)).to(_wide(hidden))


def _native_refuses(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> str | None:
    """Whether there is a kernel."""
    return refusal(hidden.device, _wide(hidden), DTYPES)


def _native_yields(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> str | None:
    """Where the definition is faster."""
    if hidden.shape[0] < FULL_VECTORS or hidden.shape[0] * weight.shape[0] <= FEW:
        return f"{hidden.shape[0]} x {weight.shape[0]} logits take less time than the call"
    return None


@linear_cross_entropy.backend("native", refuses=_native_refuses, yields=_native_yields)
def _native(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
    """O(n + d v) memory, in compiled code: attention from the positions to the vocabulary."""
    _check_targets(target, weight.shape[0])
    dtype = _product_dtype(hidden)
    if bias is not None:  # one more feature, which is always 1
        hidden, weight = torch.cat([hidden, torch.ones_like(hidden[:, :1])], 1), torch.cat([weight, bias[:, None]], 1)
    with torch.autocast(hidden.device.type, enabled=False):
        return native_cross_entropy(hidden, weight, target.long(), dtype)


def _triton_refuses(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> str | None:
    """Whether there is a kernel, for what comes in and for the products."""
    reasons = (available.refusal(hidden.device, x, TRITON_DTYPES) for x in (hidden.dtype, _product_dtype(hidden)))
    return next((reason for reason in reasons if reason is not None), None)


def _triton_yields(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> str | None:
    """Logits that are kept take three products, and five where they are made again for each gradient."""
    if hidden.shape[0] * weight.shape[0] <= KEPT:
        return f"{hidden.shape[0]} x {weight.shape[0]} logits are few enough to keep them"
    return available.interpretation(hidden.device)


@linear_cross_entropy.backend("triton", refuses=_triton_refuses, yields=_triton_yields)
def _triton(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
    """O(n + d v) memory on a GPU; computes the logits three times, and stores none."""
    _check_targets(target, weight.shape[0])
    dtype = _product_dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        return triton_cross_entropy(hidden, weight, target.long(), bias, dtype)
