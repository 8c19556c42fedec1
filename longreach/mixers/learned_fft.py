"""A Fourier transform whose factors are trained (FlashButterfly: Fu, Epstein et al. 2023,
https://arxiv.org/abs/2302.06646).

The transform of n = 2^m entries is factored into levels of a radix (longreach.ops.cooley_tukey).  What is trained:

    size      one matrix for each size of level, which all levels of that size share, as published
    level     one matrix for each level
    block     one matrix in every place of every level, the twiddle factors in it: with radix 2 a butterfly matrix, with
              a radix of n^(1/p) a Monarch matrix of order p

The inverse is conj(F(conj X)) / n, with F the same product of factors.

Axes: b batch, d channels, n entries, h matrices of a level (d, or 1 for all channels), r radix, g places of a level.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Complex, Inexact
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.base import OptimHint
from longreach.ops.butterfly import butterfly_factor, butterfly_multiply
from longreach.ops.cooley_tukey import cooley_tukey, dft_matrix, digits_reversed, radices, twiddle_factors


@dataclass(frozen=True)
class TransformOptions:
    """How a transform is factored and trained; in parentheses the names in the published code.

    Attributes:
        radix: size of the small matrices, a power of two (max_m).
        weights: what has a matrix of its own, see the module's docstring.
        per_channel: every channel has its own transform (H).
        additive: train a deviation from the Fourier transform, which starts as noise of scale 0.01, instead of the
            matrices themselves, which start as the transform's (learn_additive).
        dropout: probability of dropping a number of a trained matrix (dropout).
        lr: learning rate of the matrices instead of that of the run (dft_lr).
    """

    radix: int = 16
    weights: Literal["size", "level", "block"] = "size"
    per_channel: bool = False
    additive: bool = False
    dropout: float = 0.0
    lr: float | None = 0.001


class LearnedFFT(nn.Module):
    """The transform of every channel; the Fourier transform at first, but for the noise of `additive`.

    Args:
        channels: number of channels.
        size: number of entries, a power of two.
        options: see TransformOptions.
    """

    def __init__(self, channels: int, size: int, options: TransformOptions = TransformOptions()) -> None:
        super().__init__()
        radix = options.radix
        if size < 2 or size & (size - 1) or radix < 2 or radix & (radix - 1):
            raise InputError(f"a transform of {size=} with {radix=}: both must be powers of two, at least 2")
        self.size, self.options, self.levels = size, options, radices(size, radix)
        self.names = [str(r if options.weights == "size" else i) for i, r in enumerate(self.levels)]
        self.matrices = nn.ParameterDict()
        for i, name in enumerate(self.names):
            start = self._fourier(i).expand(channels if options.per_channel else 1, *self._fourier(i).shape)
            numbers = torch.view_as_real(start).to(torch.get_default_dtype())
            self.matrices[name] = nn.Parameter(
                0.01 * torch.randn_like(numbers) if options.additive else numbers.clone()
            )
        self.dropout = nn.Dropout(options.dropout)

    def optim_hints(self) -> dict[str, OptimHint]:
        """The matrices are no ordinary weights."""
        hint = OptimHint(lr=self.options.lr, weight_decay=False)
        return {f"matrices.{name}": hint for name in self.matrices}

    def forward(self, x: Inexact[Tensor, "b d l"]) -> Complex[Tensor, "b d {self.size}"]:
        """The transform of `x` followed by zeros, O(d n (r_1 + ... + r_p)); in float32 or wider."""
        if x.shape[-1] > self.size:
            raise InputError(f"LearnedFFT: {x.shape[-1]} entries are more than the size={self.size} of this transform")
        x = nn.functional.pad(x, (0, self.size - x.shape[-1]))
        matrices = [self._matrix(i) for i in range(len(self.levels))]
        if self.options.weights != "block":
            return cooley_tukey(x, matrices)
        if self.options.radix == 2:
            twiddle = torch.stack(matrices, dim=1)[:, None]  # (h, 1, m, g, 2, 2)
            y = butterfly_multiply(x.unflatten(1, (-1, len(twiddle))), twiddle, increasing=False).flatten(1, 2)
            return digits_reversed(y, self.levels)
        stride = self.size
        for r, matrix in zip(self.levels, matrices, strict=True):
            stride //= r
            x = butterfly_factor(x, matrix, stride)
        return digits_reversed(x, self.levels)

    def inverse(self, x: Complex[Tensor, "b d n"]) -> Complex[Tensor, "b d {self.size}"]:
        """The same product of factors as an inverse transform, which it is at first."""
        return self(x.conj()).conj() / self.size

    def _matrix(self, level: int) -> Complex[Tensor, "h ..."]:
        """What is trained at this level, in complex numbers."""
        numbers = self.matrices[self.names[level]]
        wide = numbers.to(torch.promote_types(numbers.dtype, torch.float32))
        matrix = torch.view_as_complex(self.dropout(wide).contiguous())
        return matrix + self._fourier(level).to(matrix) if self.options.additive else matrix

    def _fourier(self, level: int) -> Complex[Tensor, "..."]:
        """What makes the product the Fourier transform: (r, r), or (g, r, r) with twiddle factors."""
        matrix = dft_matrix(self.levels[level])
        if self.options.weights != "block":
            return matrix
        before = self.size // torch.Size(self.levels[level:]).numel()
        rest = self.size // (before * self.levels[level])
        twiddles = twiddle_factors(self.levels[level], rest).T[..., None]  # (rest, r, 1)
        return (twiddles * matrix).repeat(before, 1, 1)
