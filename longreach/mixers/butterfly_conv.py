"""Long convolution with learned butterfly transforms (FlashButterfly: Fu, Epstein et al. 2023,
https://arxiv.org/abs/2302.06646, section 3.3).

A convolution is a product of spectra.  Here the transforms are products of trained factors, which start as those of the
fast Fourier transform (longreach.mixers.learned_fft), of a size n of at least two longest sequences:

    y = real(H^-1(F(x) G(k)))[: l] + skip x
    k = past taps at 0, 1, ...; future taps at -1, -2, ..., which are n - 1, n - 2, ... of a circle

F, G and H start as the Fourier transform, and y as the convolution of LongConv.  Trained, the map is linear and of size
n, but no convolution: it knows where in the sequence a position stands, and lets every output see every input, so no
option makes it causal.  G is F where `tied`; H is the fixed Fourier transform, as published, or trained too.

Axes: b batch, l length, d channels, r directions (past first), k taps.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers.base import OptimHint, SequenceMixer, State
from longreach.mixers.convolution import decays
from longreach.mixers.learned_fft import LearnedFFT, TransformOptions


class ButterflyConv(SequenceMixer[State]):
    """Convolution by learned transforms; in parentheses the names in the published code.

    Args:
        d_model: number of channels.
        max_length: the longest sequence, and number of taps in each direction (l_max).  Every call costs as much as a
            sequence of this length.
        transform: how the transforms are factored and trained, see TransformOptions.
        tied: transform taps and inputs with the same weights instead of separate ones.
        learned_inverse: train the inverse transform too.
        two_sided: have taps for the future; without, the trained transforms alone let the future in.
        init: how the taps start (weight_init): `random` with scale 0.002, `exponential` with scale 0.02 and a decay,
            at a different rate in every channel (double_exp).
        threshold: taps are squashed towards zero by so much (lam).
        lr: learning rate of the taps instead of that of the run (learning_rate).
    """

    def __init__(
        self,
        d_model: int,
        *,
        max_length: int,
        transform: TransformOptions = TransformOptions(),  # noqa: B008 (it is frozen)
        tied: bool = False,
        learned_inverse: bool = False,
        two_sided: bool = True,
        init: Literal["random", "exponential"] = "exponential",
        threshold: float = 0.003,
        lr: float | None = None,
    ) -> None:
        super().__init__(d_model, causal=False)
        if max_length < 1 or threshold < 0:
            raise InputError(f"{max_length=}, {threshold=}: there is at least one position, and no negative threshold")
        self.max_length, self.threshold = max_length, threshold
        size = 2 ** (2 * max_length - 1).bit_length()
        self.input_transform = LearnedFFT(d_model, size, transform)
        self.kernel_transform = None if tied else LearnedFFT(d_model, size, transform)
        self.inverse_transform = LearnedFFT(d_model, size, transform) if learned_inverse else None
        scale = 0.02 * decays(d_model, max_length) if init == "exponential" else 0.002
        noise = torch.randn(2 if two_sided else 1, d_model, max_length)
        self.kernel = nn.Parameter((noise * scale).to(noise.dtype))
        self.skip = nn.Parameter(torch.randn(d_model))
        self.optim_hints = {"kernel": OptimHint(lr=lr, weight_decay=False)}
        for name, module in self.named_children():
            if isinstance(module, LearnedFFT):
                self.optim_hints |= {f"{name}.{inner}": hint for inner, hint in module.optim_hints().items()}

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Mix the whole sequence, O(d n (r_1 + ... + r_p)) with the radices r of the transforms, whatever l is.

        Padding counts as zeros.  It does matter where real positions stand: pad at the end.
        """
        self._check_length(x.shape[1])
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        u = x.mT.to(torch.promote_types(x.dtype, torch.float32))
        kernel_transform = self.input_transform if self.kernel_transform is None else self.kernel_transform
        spectrum = self.input_transform(u) * kernel_transform(self.circle()[None])
        inverse = torch.fft.ifft if self.inverse_transform is None else self.inverse_transform.inverse
        y = inverse(spectrum)
        return (y.real[..., : x.shape[1]] + self.skip[:, None] * u).mT.to(x.dtype)

    def circle(self) -> Float[Tensor, "d n"]:
        """The taps after squashing, those of the future at the end: float32 or wider."""
        taps = F.softshrink(self.kernel.to(torch.promote_types(self.kernel.dtype, torch.float32)), self.threshold)
        gap = self.input_transform.size - taps.shape[0] * taps.shape[-1]
        circle = F.pad(taps[0], (0, gap))
        return circle if len(taps) == 1 else torch.cat([circle, taps[1].flip(-1)], dim=-1)
