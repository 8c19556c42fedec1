"""Normalisation over the channels of a sequence: layer norm, root-mean-square norm, batch norm.

    layer   (x - mean_d x) / std_d x * weight + bias       Ba et al. 2016, https://arxiv.org/abs/1607.06450
    rms     x / sqrt(mean_d x^2) * weight                  Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467
    batch   as layer, over batch and length per channel    Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167;
            what the state-space papers use on the Long Range Arena

Axes: b batch, l length (absent in a step), d model width.
"""

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

Norm = Literal["layer", "rms", "batch"]


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


def make_norm(kind: Norm, d_model: int) -> nn.Module:
    """A new norm over `d_model` channels."""
    kinds = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "batch": BatchNorm}
    return kinds[kind](d_model)


def apply_norm(
    norm: nn.Module, x: Float[Tensor, "b *l d"], mask: Bool[Tensor, "b *l"] | None
) -> Float[Tensor, "b *l d"]:
    """Call a norm; only batch norm needs to know where the padding is."""
    return norm(x, mask) if isinstance(norm, BatchNorm) else norm(x)
