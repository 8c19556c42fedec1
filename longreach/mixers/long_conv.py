"""Explicit long convolutions (Fu, Epstein et al. 2023, https://arxiv.org/abs/2302.06646).

Every channel has its own kernel, one trained number for each tap.  Two regularisers make such kernels learn long
sequences, of which the first is enough:

    squash      K <- sign(K) max(|K| - threshold, 0)                 taps that carry nothing become zero
    smooth      K <- a moving average over taps, or of the spectrum  before the squashing
    y = K * x + skip x

They start as noise, or as noise that decays, at a different rate in every channel: at the fraction t of the length,
channel h of d has the scale exp(-t floor(d/2)^(h/d)).

The mixer is the bare convolution: the GELU and the gated linear map of the published layer are longreach.models.GLU.

Axes: b batch, l length, d channels, r directions (past first), k taps, f frequencies.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers.base import OptimHint
from longreach.mixers.convolution import Convolution, decays, weigh_neighbours


class LongConv(Convolution):
    """Convolution with trained taps: d_model * kernel_length numbers; in parentheses the names in the published code.

    Args:
        d_model: number of channels.
        kernel_length: number of taps (l_max); what is further away is not seen.
        init: how the taps start (weight_init): `random` with scale 0.002, `exponential` with scale 0.02 and the decay
            of the module's docstring (double_exp).
        threshold: of the squashing (lam); 0 for none.  It must not be far above the scale of the start, or no tap is
            alive: with 0.003, 13% of random taps are, and a quarter of exponential ones (at width 256).
        smoothing: `time` averages each tap with its neighbours, `frequency` each bin of the spectrum
            (use_ma_smoothing, smooth_freq); `none`.
        smoothing_width: number of neighbours in an average, an odd one (ma_window_len).
        causal: whether a position sees only itself and what came before it; otherwise what follows too.
        dropout: probability of dropping a tap (kernel_dropout).
        lr: learning rate of the taps instead of that of the run (learning_rate).
    """

    def __init__(
        self,
        d_model: int,
        *,
        kernel_length: int = 1024,
        init: Literal["random", "exponential"] = "exponential",
        threshold: float = 0.003,
        smoothing: Literal["none", "time", "frequency"] = "none",
        smoothing_width: int = 7,
        causal: bool = True,
        dropout: float = 0.0,
        lr: float | None = None,
    ) -> None:
        super().__init__(d_model, causal=causal)
        if kernel_length < 1 or threshold < 0:
            raise InputError(f"{kernel_length=}, {threshold=}: there is at least one tap, and no negative threshold")
        if smoothing_width < 1 or smoothing_width % 2 == 0:
            raise InputError(f"{smoothing_width=} must be odd: a tap and as many neighbours on either side")
        self.threshold, self.smoothing, self.smoothing_width = threshold, smoothing, smoothing_width
        noise = torch.randn(1 if causal else 2, d_model, kernel_length)
        scale = 0.02 * decays(d_model, kernel_length) if init == "exponential" else 0.002
        self.kernel = nn.Parameter((noise * scale).to(noise.dtype))
        self.skip = nn.Parameter(torch.randn(d_model))
        self.dropout = nn.Dropout(dropout)
        self.optim_hints = {"kernel": OptimHint(lr=lr, weight_decay=False)}

    @property
    def taps(self) -> int:
        """How many taps each kernel has."""
        return self.kernel.shape[-1]

    def kernels(self, count: int) -> Float[Tensor, "r d {count}"]:
        """The taps after smoothing, squashing and dropout; O(d count), and O(d k log k) to smooth the spectrum."""
        kernel = self.kernel.to(torch.promote_types(self.kernel.dtype, torch.float32))
        if self.smoothing == "frequency":
            kernel = smooth_spectrum(kernel, self.smoothing_width)
        elif self.smoothing == "time":
            kernel = moving_average(kernel[..., : count + self.smoothing_width // 2], self.smoothing_width)
        return self.dropout(F.softshrink(kernel[..., :count], self.threshold))


def moving_average(kernel: Float[Tensor, "*r k"], width: int) -> Float[Tensor, "*r k"]:
    """The mean over `width` neighbours, where those outside of the kernel count as zeros."""
    return weigh_neighbours(kernel, [1 / width] * width)


def smooth_spectrum(kernel: Float[Tensor, "*r k"], width: int) -> Float[Tensor, "*r k"]:
    """The kernel whose spectrum is that of `kernel` averaged over `width` neighbouring frequencies.

    The weights are those of a Gaussian, and do not add up to one (about 2.5 for a width of 7), as published.
    """
    weights = [math.exp(-0.5 * (i - width // 2) ** 2) for i in range(width)]
    spectrum = weigh_neighbours(torch.fft.rfft(kernel), weights)
    return torch.fft.irfft(spectrum, n=kernel.shape[-1])
