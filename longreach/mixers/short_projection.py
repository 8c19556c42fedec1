"""Projections that pass a short convolution, channels first: how Hyena and Monarch Mixer begin.

Padding is zero after the projection and again after the convolution, whose bias would otherwise fill it, so that it
never influences anything.

Axes: b batch, l length, d model width, c projected channels, k taps of the short convolution.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from longreach.ops.linear_channels import linear_to_channels
from longreach.ops.short_conv import short_conv


def short_weights(channels: int, width: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Taps (c, k) and bias (c,) of a short convolution, as torch initialises a depthwise one."""
    bound = width**-0.5
    return (
        nn.Parameter(torch.empty(channels, width).uniform_(-bound, bound)),
        nn.Parameter(torch.empty(channels).uniform_(-bound, bound)),
    )


def project(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "c d"],
    bias: Float[Tensor, " c"] | None,
    mask: Bool[Tensor, "b l"] | None,
) -> Float[Tensor, "b c l"]:
    """The linear map at every position, zero at padding; O(b l d c)."""
    projected = linear_to_channels(x, weight, bias)
    return projected if mask is None else projected.masked_fill(~mask[:, None], 0.0)


def shorten(
    projected: Float[Tensor, "b c l"],
    weight: Float[Tensor, "c k"],
    bias: Float[Tensor, " c"],
    mask: Bool[Tensor, "b l"] | None,
    tail: Float[Tensor, "b c _"] | None,
) -> Float[Tensor, "b c l"]:
    """The short convolution of a chunk that follows `tail`, zero at padding; O(b l c k)."""
    branches = short_conv(projected, weight, bias, tail)
    return branches if mask is None else branches.masked_fill(~mask[:, None], 0.0)
