"""Normalisation over the channels of a sequence.

    layer         (x - mean_d x) / std_d x * weight + bias       Ba et al. 2016, https://arxiv.org/abs/1607.06450
    rms           x / sqrt(mean_d x^2) * weight                  Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467
    rms_outside   x / (sqrt(mean_d x^2) + eps) * weight          the same with eps outside the root, as in StripedHyena
    scale         x / sqrt(mean_d x^2) * weight                  with one weight for all channels, as in Mega; Nguyen &
                  Salazar 2019, https://arxiv.org/abs/1910.05895
    batch         as layer, over batch and length per channel    Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167;
                  what the state-space papers use on the Long Range Arena

All of them add 1e-5 to what they divide by (to its square, where a root is taken).

Axes: b batch, l length (absent in a step), d model width.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["layer", "rms", "rms_outside", "scale", "batch"]

EPS = 1e-5


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

    def __init__(self, d_model: int, *, eps: float = EPS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Divide every position by its root mean square; in float32 or wider."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        root = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        normed = wide / (root + self.eps)
        return (normed if self.weight is None else self.weight * normed).to(x.dtype)


class ScaleNorm(nn.Module):
    """Root-mean-square norm with one weight for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Divide every position by its root mean square."""
        return F.rms_norm(x, x.shape[-1:], None if self.weight is None else self.weight.expand(x.shape[-1]), EPS)


def make_norm(kind: Norm, d_model: int, *, affine: bool = True) -> nn.Module:
    """A new norm over `d_model` channels, with weights (and, where it has them, biases) only if `affine`."""
    norm = {
        "layer": lambda: nn.LayerNorm(d_model, eps=EPS),
        "rms": lambda: nn.RMSNorm(d_model, eps=EPS),
        "rms_outside": lambda: RMSNormOutside(d_model),
        "scale": ScaleNorm,
        "batch": lambda: BatchNorm(d_model, eps=EPS),
    }[kind]()
    if not affine:
        for name in dict(norm.named_parameters()):
            setattr(norm, name, None)
    return norm


def apply_norm(
    norm: nn.Module, x: Float[Tensor, "b *l d"], mask: Bool[Tensor, "b *l"] | None
) -> Float[Tensor, "b *l d"]:
    """Call a norm; only batch norm needs to know where the padding is."""
    return norm(x, mask) if isinstance(norm, BatchNorm) else norm(x)
