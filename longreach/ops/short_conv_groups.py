"""Depthwise convolution with a few taps, a few channels at a time, and its derivatives.

With k taps there is little to compute for every number that is read and written, so that memory decides: sums of
shifted inputs of a group of channels that stays in the cache take a half to a third of the time of torch's depthwise
convolution (docs/operators.md).

Axes: b batch, d channels (c of them in a group), l length, k taps.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from longreach.ops.gradients import gradients_by_autograd

CACHE = 1 << 21
"""Bytes of the input of a group of channels per thread, in the precision of the sums."""


def short_conv_groups(
    x: Float[Tensor, "b d l"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None,
    tail: Float[Tensor, "b d _"] | None,
) -> Float[Tensor, "b d l"]:
    """`short_conv` (longreach.ops.short_conv says what that is), with any number of derivatives.

    Takes O(b d l k) time; memory for the result and a group.
    """
    return _ShortConv.apply(x, weight, bias, tail)


class _ShortConv(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None) -> Tensor:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        for rows in _groups(x):
            y[:, rows] = _sum(_past(x, tail, weight.shape[-1], rows), weight, bias, rows)
        return y

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad
        if torch.is_grad_enabled():  # second derivatives: let autograd differentiate the sum
            return tuple(gradients_by_autograd(_plain, inputs, needed, grad))
        kept = (x if need else None for x, need in zip(inputs, needed, strict=True))
        grads = tuple(x if x is None else torch.empty_like(x, memory_format=torch.contiguous_format) for x in kept)
        for rows in _groups(grad):
            _backward(grad[:, rows], inputs, grads, rows)
        return grads


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None) -> Tensor:
    """All channels at once."""
    return _sum(_past(x, tail, weight.shape[-1], slice(None)), weight, bias, slice(None)).to(x.dtype)


def _groups(x: Tensor) -> Iterator[slice]:
    """The channels cut into groups that fit into the cache; torch.compile plans its own loops."""
    threads = 1 if torch.compiler.is_compiling() else torch.get_num_threads()
    step = max(1, CACHE * threads // (4 * x.shape[0] * max(x.shape[2], 1)))
    return (slice(start, start + step) for start in range(0, x.shape[1], step))


def _past(x: Tensor, tail: Tensor | None, width: int, rows: slice) -> Tensor:
    """A group of channels with the width - 1 inputs before them, (b, c, k - 1 + l), in float32 or wider."""
    wide, x = torch.promote_types(x.dtype, torch.float32), x[:, rows]
    before = x.new_zeros(*x.shape[:2], width - 1) if tail is None else tail[:, rows]
    return torch.cat([before.to(wide), x.to(wide)], dim=-1)


def _sum(past: Tensor, weight: Tensor, bias: Tensor | None, rows: slice) -> Tensor:
    """The output of a group."""
    width = weight.shape[-1]
    length, weight = past.shape[-1] - width + 1, weight[rows].to(past.dtype)
    y = past[..., width - 1 :] * weight[:, -1:]
    if bias is not None:
        y = y.add_(bias[rows, None])
    for j in range(width - 1):
        y = y.addcmul_(past[..., j : j + length], weight[:, j, None])
    return y


def _backward(grad: Tensor, inputs: tuple, grads: tuple, rows: slice) -> None:
    """Write the derivatives of one group into those of `grads` that are wanted (the others are None)."""
    x, weight, _, tail = inputs
    grad_x, grad_weight, grad_bias, grad_tail = grads
    width, length = weight.shape[-1], grad.shape[-1]
    past = _past(x, tail, width, rows)
    grad, weight = grad.to(past.dtype), weight[rows].to(past.dtype)
    if grad_bias is not None:
        grad_bias[rows] = grad.sum((0, 2))
    if grad_weight is not None:
        for j in range(width):
            grad_weight[rows, j] = torch.linalg.vecdot(grad, past[..., j : j + length]).sum(0)
    if grad_x is not None or grad_tail is not None:
        grad_past = torch.zeros_like(past)
        for j in range(width):
            grad_past[..., j : j + length].addcmul_(grad, weight[:, j, None])
        if grad_x is not None:
            grad_x[:, rows] = grad_past[..., width - 1 :]
        if grad_tail is not None:
            grad_tail[:, rows] = grad_past[..., : width - 1]
