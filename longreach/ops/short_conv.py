"""Causal depthwise convolution with a few taps, the local companion of the long operators (H3, Hyena, Mamba).

    y_t = bias + sum_j weight[width-1-j] x_{t-j}          so weight[:, -1] multiplies the current sample

The state of a short convolution is its tail, the last width - 1 inputs.

Axes: b batch, d channels, l length, k = width taps.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv1d, pad

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.native import refusal
from longreach.ops.short_conv_groups import short_conv_groups
from longreach.ops.short_conv_native import DTYPES, native_short_conv
from longreach.ops.triton import available
from longreach.ops.triton.short_conv import refusal as triton_refusal
from longreach.ops.triton.short_conv import triton_short_conv

FEW = 1 << 16
"""Below this many elements the cost of a call decides, and the sum of shifted inputs is called faster."""


def _with_past(x: Tensor, width: int, tail: Tensor | None) -> Tensor:
    """`x` preceded by the width - 1 inputs before it, zeros where there is no `tail`."""
    if tail is None:
        return pad(x, (width - 1, 0))
    _check_tail(x, width, tail)
    return torch.cat([tail.to(x.dtype), x], dim=-1)


def _check_tail(x: Tensor, width: int, tail: Tensor) -> None:
    if tail.shape != (*x.shape[:2], width - 1):
        raise InputError(
            f"short_conv: tail is {tuple(tail.shape)}; behind x {tuple(x.shape)} a filter of width {width} needs "
            f"{(*x.shape[:2], width - 1)}"
        )


@op
def short_conv(
    x: Float[Tensor, "b d l"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None = None,
    tail: Float[Tensor, "b d _"] | None = None,
) -> Float[Tensor, "b d l"]:
    """Each channel filtered with its own `weight`; `tail` holds the inputs before `x` (None: zeros).

    Takes O(b d l k); sums are in float32 or wider, the result has the dtype of `x`.
    """
    length, width, wide = x.shape[-1], weight.shape[-1], torch.promote_types(x.dtype, torch.float32)
    past, weight = _with_past(x, width, tail), weight.to(wide)
    y = weight[:, -1:] * past[..., width - 1 :]
    for j in range(width - 1):
        y = y + weight[:, j, None] * past[..., j : j + length]
    return (y if bias is None else y + bias.to(wide)[:, None]).to(x.dtype)


def _conv1d_yields(x: Tensor, weight: Tensor, bias: Tensor | None = None, tail: Tensor | None = None) -> str | None:
    return "is slower to call than the sum, and there is little to do" if x.numel() < FEW else None


@short_conv.backend("conv1d", yields=_conv1d_yields)
def _conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, tail: Tensor | None = None) -> Tensor:
    """The same through torch's depthwise convolution, which reads the input once; weights in the dtype of `x`."""
    past = _with_past(x, weight.shape[-1], tail)
    bias = None if bias is None else bias.to(x.dtype)
    return conv1d(past, weight.to(x.dtype)[:, None], bias, groups=weight.shape[0])


def _groups_yields(x: Tensor, weight: Tensor, bias: Tensor | None = None, tail: Tensor | None = None) -> str | None:
    return _conv1d_yields(x, weight) or (None if x.device.type == "cpu" else "is made for the cache of a CPU")


@short_conv.backend("groups", yields=_groups_yields)
def _groups(x: Tensor, weight: Tensor, bias: Tensor | None = None, tail: Tensor | None = None) -> Tensor:
    """The sum of shifted inputs, a few channels at a time; in float32 or wider."""
    if tail is not None:
        _check_tail(x, weight.shape[-1], tail)
    return short_conv_groups(x, weight, bias, tail)


def _native_refuses(x: Tensor, weight: Tensor, bias: Tensor | None = None, tail: Tensor | None = None) -> str | None:
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    return refusal(x.device, wide, DTYPES)


@short_conv.backend("native", refuses=_native_refuses)
def _native(x: Tensor, weight: Tensor, bias: Tensor | None = None, tail: Tensor | None = None) -> Tensor:
    """One pass in compiled code; in float32 or wider."""
    if tail is not None:
        _check_tail(x, weight.shape[-1], tail)
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    others = (None if other is None else other.to(wide) for other in (bias, tail))
    return native_short_conv(x.to(wide), weight.to(wide), *others).to(x.dtype)


def _triton_refuses(x: Tensor, weight: Tensor, bias: Tensor | None = None, tail: Tensor | None = None) -> str | None:
    return triton_refusal(x, weight, bias, tail)


def _triton_yields(x: Tensor, weight: Tensor, bias: Tensor | None = None, tail: Tensor | None = None) -> str | None:
    return available.interpretation(x.device)


@short_conv.backend("triton", refuses=_triton_refuses, yields=_triton_yields)
def _triton(x: Tensor, weight: Tensor, bias: Tensor | None = None, tail: Tensor | None = None) -> Tensor:
    """One pass on a GPU, over positions or channels that lie side by side; in float32 or wider."""
    if tail is not None:
        _check_tail(x, weight.shape[-1], tail)
    return triton_short_conv(x, weight, bias, tail)


def short_conv_tail(
    x: Float[Tensor, "b d l"], tail: Float[Tensor, "b d {width-1}"] | None, width: int
) -> Float[Tensor, "b d {width-1}"]:
    """The last width - 1 inputs after `x` was read behind `tail` (None: zeros), in the dtype of `tail`."""
    past = _with_past(x, width, tail)
    return past[..., past.shape[-1] - (width - 1) :].to(x.dtype if tail is None else tail.dtype, copy=True)
