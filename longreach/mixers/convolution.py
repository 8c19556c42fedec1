"""Mixers that are one convolution for each channel, whatever their kernels are made of: their three views.

    y_t = sum_{j < taps} K_j x_{t-j}  +  sum_j R_j x_{t+1+j}  +  skip x_t

The second sum is there in bidirectional mixers only.  What is further away than the kernel has taps is not seen, so
there is no longest sequence.  Generation is exact and takes O(log^2 taps) operations a channel per position on average,
with O(taps) memory, however long the stream is (longreach.ops.online_conv).

Axes: b batch, l length, d channels, r directions (past first), k taps.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor
from torch.nn.functional import pad

from longreach.mixers.base import SequenceMixer
from longreach.mixers.constant_weights import of_weights
from longreach.ops.long_conv import long_conv
from longreach.ops.online_conv import (
    OnlineConvState,
    held_inputs,
    init_online_conv,
    online_conv_prefill,
    online_conv_step,
    refuse_late_padding,
)
from longreach.ops.transposed import transposed


class Convolution(SequenceMixer[OnlineConvState]):
    """Base of the mixers that are a convolution.  They say what `taps`, `skip` and `kernels` are."""

    skip: Tensor | None
    """(d,), the direct path past the convolution, or None."""

    @property
    @abstractmethod
    def taps(self) -> int:
        """How many taps each kernel has."""

    @abstractmethod
    def kernels(self, count: int) -> Float[Tensor, "r d {count}"]:
        """The first `count` <= taps taps in float32 or wider: the kernel of the past, and that of the future."""

    def _past_taps(self, count: int) -> Float[Tensor, "d {count}"]:
        """The first taps of the past, which dropout makes different ones every time."""
        return self.kernels(count)[0] if self.training else self._constant_taps(count)

    @of_weights
    def _constant_taps(self, count: int) -> Float[Tensor, "d {count}"]:
        return self.kernels(count)[0]

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Convolve, O(d l log l)."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        past, *future = self.kernels(min(x.shape[1], self.taps))
        u = transposed(x)
        return transposed(long_conv(u, past, reverse_kernel=future[0] if future else None, skip=self.skip))

    def init_state(self, batch_size: int) -> OnlineConvState:
        """Nothing has been read."""
        if not self.causal:
            raise self._no_recurrent_view()
        parameter = next(self.parameters())
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        return init_online_conv(batch_size, self.d_model, dtype=dtype, device=parameter.device)

    def step(self, x: Float[Tensor, "b d"], state: OnlineConvState) -> tuple[Float[Tensor, "b d"], OnlineConvState]:
        """Mix one position, O(d log^2 taps) on average over the positions."""
        if not self.causal:
            raise self._no_recurrent_view()
        y, state = online_conv_step(x, state, self._past_taps, self.taps)
        return (y if self.skip is None else torch.addcmul(y, self.skip, x)).to(x.dtype), state

    def prefill(
        self, x: Float[Tensor, "b l d"], state: OnlineConvState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], OnlineConvState]:
        """Mix a chunk, O(d l log l).  Padding may stand before the first real position of a row only."""
        if not self.causal:
            raise self._no_recurrent_view()
        if mask is not None:
            refuse_late_padding(mask, held_inputs(state))
            x = x.masked_fill(~mask[..., None], 0)
        u = x.mT
        y, state = online_conv_prefill(u, state, self._past_taps, self.taps)
        return (y if self.skip is None else y + self.skip[:, None] * u).mT.to(x.dtype), state


def decays(d_model: int, length: int) -> Float[Tensor, "{d_model} {length}"]:
    """The scale of every tap at the exponential start, 1 at the first one; float64."""
    channel = torch.arange(d_model, dtype=torch.float64)[:, None] / d_model
    time = torch.arange(length, dtype=torch.float64) / length
    return (-time * float(d_model // 2) ** channel).exp()


def weigh_neighbours(x: Inexact[Tensor, "*r k"], weights: Sequence[float]) -> Inexact[Tensor, "*r k"]:
    """sum_i weights[i] x[.. + i - half] over the last axis, an odd number of weights; there are zeros outside."""
    half, length = len(weights) // 2, x.shape[-1]
    padded = pad(x, (half, half))
    return sum((weight * padded[..., i : i + length] for i, weight in enumerate(weights)), torch.zeros_like(x))
