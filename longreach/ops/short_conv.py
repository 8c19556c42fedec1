"""Causal depthwise convolution with a few taps, the local companion of the long operators (H3, Hyena, Mamba).

    y_t = bias + sum_j weight[width-1-j] x_{t-j}          so weight[:, -1] multiplies the current sample

Axes: b batch, d channels, l length; the second axis of `weight` counts the `width` taps.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv1d, pad

from longreach.errors import InputError
from longreach.ops.backend import op


def _with_past(x: Tensor, width: int, tail: Tensor | None) -> Tensor:
    """`x` preceded by the width - 1 inputs before it, zeros where there is no `tail`."""
    if tail is None:
        return pad(x, (width - 1, 0))
    if tail.shape[-1] != width - 1:
        raise InputError(f"tail has {tail.shape[-1]} positions; a filter of width {width} needs the last {width - 1}")
    return torch.cat([tail.to(x.dtype), x], dim=-1)


@op
def short_conv(
    x: Float[Tensor, "b d l"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None = None,
    tail: Float[Tensor, "b d _"] | None = None,
) -> Float[Tensor, "b d l"]:
    """Each channel filtered with its own `weight`; `tail` holds the width - 1 inputs before `x` (None: zeros)."""
    length, width = x.shape[-1], weight.shape[-1]
    past = _with_past(x, width, tail)
    y = sum(weight[:, j, None] * past[..., j : j + length] for j in range(width))
    return y if bias is None else y + bias[:, None]


@short_conv.backend("conv1d")
def _conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, tail: Tensor | None = None) -> Tensor:
    """The same through torch's depthwise convolution."""
    past = _with_past(x, weight.shape[-1], tail)
    return conv1d(past, weight[:, None], bias, groups=weight.shape[0])


def short_conv_tail(
    x: Float[Tensor, "b d l"], tail: Float[Tensor, "b d k"] | None, width: int
) -> Float[Tensor, "b d {width-1}"]:
    """The last width - 1 inputs after reading `x` behind `tail`: the state of a short convolution."""
    past = _with_past(x, width, tail)
    return past[..., past.shape[-1] - (width - 1) :].clone()
