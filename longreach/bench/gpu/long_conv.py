"""Long convolutions: ours, our form on torch.fft, and torch.fft as published code uses it.

Axes: b batch, d channels, l length.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from longreach.bench import baselines
from longreach.bench.gpu.cells import Cell, Contest
from longreach.bench.gpu.sides import OUR_TORCH, OURS, leaf, our_torch, ours
from longreach.bench.gpu.sizes import Sizes

SECTION = "long_conv"
FFT = "torch.fft"
PUBLISHED = {
    256: 5.6, 1 << 10: 7.9, 1 << 12: 6.6, 1 << 13: 5.4, 1 << 14: 2.5, 1 << 15: 3.2, 1 << 20: 1.7,
}  # fmt: skip
"""How many times as fast as torch.fft FlashFFTConv is on an H100, by its authors
(https://arxiv.org/abs/2311.05908, the convolution alone, forward)."""
CHANNELS, BATCH = 768, 64
"""At most, as in those measurements."""
MAIN = tuple(PUBLISHED)
FEW = (1 << 10, 1 << 13, 1 << 17)
"""Lengths in float32."""
NAMES = ("u", "kernel", "skip", "gate_before", "gate_after")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def convolution_cells(sizes: Sizes) -> list[Cell]:
    """Alone and between gates in bfloat16, as in training; between gates in float32 at few lengths."""
    sides = {OURS: ours("long_conv", *NAMES), FFT: _fft, OUR_TORCH: our_torch("long_conv", *NAMES)}
    plain = _contest(sizes, "bfloat16", gated=False, sides=sides)
    gated = _contest(sizes, "bfloat16", gated=True, sides=sides)
    wide = _contest(sizes, "float32", gated=True, sides=sides)._replace(
        lengths=[length for length in sizes.convolution_lengths if length in FEW], main=()
    )
    return [*plain.cells(rank=1), *gated.cells(rank=1), *wide.cells(rank=2)]


def _contest(sizes: Sizes, dtype: str, *, gated: bool, sides: dict[str, Callable[..., Tensor]]) -> Contest:
    return Contest(
        *(SECTION, f"{dtype}, gated" if gated else dtype, sizes.convolution_lengths),
        inputs=partial(_inputs, sizes, dtype, gated),
        sides=sides,
        exact=_fft,
        main=MAIN,
        minor=(OUR_TORCH,),
    )


def _inputs(sizes: Sizes, dtype: str, gated: bool, length: int, device: str) -> list[Any]:
    """The signal, filters in float32 as models make them, the skip, and two gates."""
    d = max(1, min(CHANNELS, sizes.convolution_numbers // length))
    b = max(1, min(BATCH, sizes.convolution_numbers // (d * length)))
    signals = [leaf(b, d, length, device=device, dtype=DTYPES[dtype]) for _ in range(3 if gated else 1)]
    with torch.no_grad():
        fading = torch.exp(-8 * torch.arange(length, device=device) / length)
        kernel = torch.randn(d, length, device=device) * fading / length**0.5
    return [signals[0], kernel.requires_grad_(), leaf(d, device=device), *signals[1:]]


def _fft(u: Tensor, kernel: Tensor, skip: Tensor, *gates: Tensor) -> Tensor:
    """In float32, as cuFFT has no transform of bfloat16."""
    if not gates:
        return baselines.fft_convolution(u.float(), kernel, skip).to(u.dtype)
    before, after = gates
    return after * baselines.fft_convolution((before * u).float(), kernel, skip).to(u.dtype)
