"""FNet (Lee-Thorp et al. 2021, https://arxiv.org/abs/2105.03824): Fourier transforms in the place of attention.

    y_kc = Re sum_t sum_j exp(-2 pi i (k t / l + c j / d)) x_tj

The mixer has no parameters, and every output sees every input.  A row is transformed over its real positions alone, so
that padding does not move the frequencies, as it does in the published code.

Axes: b batch, l length, d model width.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longreach.mixers.base import SequenceMixer, State
from longreach.mixers.heads import widened
from longreach.ops.compaction import compact, restore


class FNet(SequenceMixer[State]):
    """The real part of a two-dimensional Fourier transform, O(l d log(l d)); bidirectional only.

    Args:
        d_model: width of the model.
        normalisation: `none` is the plain sum, as published, where a norm follows; `ortho` divides it by sqrt(l d),
            which keeps the size of the input, as a branch of a residual block that starts with its norm should.
    """

    def __init__(self, d_model: int, *, normalisation: Literal["none", "ortho"] = "ortho") -> None:
        super().__init__(d_model, causal=False)
        self.normalisation = normalisation

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Transform every row over its real positions; zero at padding."""
        if mask is None:
            return self._transform(x)
        packed = compact(x, mask)
        rows, counts = packed.x, packed.mask.sum(1)
        y = torch.zeros_like(rows)
        for count in counts.unique().tolist():
            if count:
                alike = (counts == count).nonzero()[:, 0]
                y[alike, :count] = self._transform(rows[alike, :count])
        return restore(y, packed)

    def _transform(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """All rows over their whole length."""
        norm = "ortho" if self.normalisation == "ortho" else "backward"
        return torch.fft.fft2(widened(x), dim=(1, 2), norm=norm).real.to(x.dtype)
