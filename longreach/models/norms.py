"""Normalisation over the channels of a sequence: layer norm, root-mean-square norm, batch norm.

    layer         (x - mean_d x) / std_d x * weight + bias       Ba et al. 2016, https://arxiv.org/abs/1607.06450
    rms           x / sqrt(mean_d x^2) * weight                  Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467
    rms_outside   x / (sqrt(mean_d x^2) + eps) * weight          the same with eps outside the root, as in StripedHyena
    batch         as layer, over batch and length per channel    Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167;
                  what the state-space papers use on the Long Range Arena

Axes: b batch, l length (absent in a step), d model width.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Norm = Literal["layer", "rms", "rms_outside", "batch"]


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over the last axis; while it trains, padding takes no part in the statistics.

    In training mode a position sees the statistics of the whole batch, the future included, so no law of causality or
    of independent rows holds; in evaluation mode it is a fixed affine map and all of them do.
    """

    def forward(
        self, input: Float[Tensor, "b *l d"], mask: Bool[Tensor, "b *l"] | None = None
    ) -> Float[Tensor, "b *l d"]:
        """Normalise every channel over all positions where `mask` is True."""
        if mask is None or not self.training:
            return super().forward(input.flatten(0, -2)).view_as(input)
        normed = input.clone()
        normed[mask] = super().forward(input[mask]).to(input.dtype)
        return normed


class RMSNormOutside(nn.Module):
    """Root-mean-square norm that adds `eps` to the root instead of to what is under it."""

    def __init__(self, d_model: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Divide every position by its root mean square; in float32 or wider."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        root = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return (self.weight * (wide / (root + self.eps))).to(x.dtype)


def make_norm(kind: Norm, d_model: int) -> nn.Module:
    """A new norm over `d_model` channels."""
    kinds = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "rms_outside": RMSNormOutside, "batch": BatchNorm}
    return kinds[kind](d_model)


def apply_norm(
    norm: nn.Module, x: Float[Tensor, "b *l d"], mask: Bool[Tensor, "b *l"] | None
) -> Float[Tensor, "b *l d"]:
    """Call a norm; only batch norm needs to know where the padding is."""
    return norm(x, mask) if isinstance(norm, BatchNorm) else norm(x)
