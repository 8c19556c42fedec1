"""The fast transforms as butterfly matrices, exact: Fourier, Hadamard, cosine, sine, circulant and Toeplitz.

All are a permutation, a butterfly and a permutation (Dao et al. 2019, https://arxiv.org/abs/1903.05895):

    Fourier        bit reversal, then factors [[1, w], [1, -w]] with w = exp(-2 pi i j / 2s) at stride s, offset j
                   (decimation in time), or their transposes in reverse, then bit reversal (in frequency)
    cosine, sine   even entries and odd ones reversed, phases, Fourier, phases, real part (Makhoul 1980); by the
                   definitions of scipy.fft
    circulant      Fourier, spectrum of the first column, inverse Fourier: two blocks, and the bit reversals cancel
    Toeplitz       a part of a circulant matrix of at least twice the size: convolution with any kernel

Trained, their twiddles are starting points for `butterfly_multiply` and longreach.models.ButterflyLinear.

Axes: n entries, c blocks, m factors, h places of a factor.
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Complex, Inexact, Int
from torch import Tensor
from torch.nn.functional import pad

from longreach.errors import InputError
from longreach.ops.butterfly import butterfly_multiply, transpose_twiddle
from longreach.ops.butterfly_permutation import bit_reversal, levels_of


class ButterflyTransform(NamedTuple):
    """A fixed square matrix in factors.  Made in float64; convert `twiddle` to compute in another precision."""

    twiddle: Inexact[Tensor, "1 c m h 2 2"]
    increasing: bool
    """Whether the strides of the first block increase."""
    size: int
    """Entries of input and output; the factors may have more, which are zero at first and left out at last."""
    order_before: Int[Tensor, " n"] | None = None
    order_after: Int[Tensor, " n"] | None = None
    real: bool = False
    """Whether the result is the real part; such a transform takes real inputs only."""


def apply_transform(x: Inexact[Tensor, "*b n"], transform: ButterflyTransform) -> Inexact[Tensor, "*b n"]:
    """The transform of the last axis, O(n log n)."""
    if x.shape[-1] != transform.size or (transform.real and x.is_complex()):
        kind = "real " if transform.real else ""
        raise InputError(f"apply_transform: x is {x.dtype} {tuple(x.shape)}; {transform.size} {kind}entries are needed")
    x = pad(x, (0, 2 * transform.twiddle.shape[3] - transform.size))
    if transform.order_before is not None:
        x = x[..., transform.order_before]
    y = butterfly_multiply(x[..., None, :], transform.twiddle, transform.increasing)[..., 0, :]
    if transform.order_after is not None:
        y = y[..., transform.order_after]
    return (y.real if transform.real else y)[..., : transform.size]


def fourier_transform(
    n: int,
    *,
    inverse: bool = False,
    normalized: bool = False,
    decimation: Literal["time", "frequency"] = "time",
) -> ButterflyTransform:
    """torch.fft.fft or ifft of n = 2^m entries; `normalized` is their norm="ortho"."""
    twiddle, order = _fourier_twiddle(n, inverse), bit_reversal(n)
    if normalized or inverse:
        twiddle = twiddle / (math.sqrt(2) if normalized else 2)
    if decimation == "frequency":
        return ButterflyTransform(transpose_twiddle(twiddle), False, n, order_after=order)
    return ButterflyTransform(twiddle, True, n, order_before=order)


def hadamard_transform(n: int, *, normalized: bool = False) -> ButterflyTransform:
    """The Hadamard matrix of n = 2^m entries in its natural order; `normalized` makes it orthogonal."""
    factor = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / (math.sqrt(2) if normalized else 1)
    levels = levels_of(n, "hadamard_transform")
    return ButterflyTransform(factor.expand(1, 1, levels, n // 2, 2, 2), True, n)


def cosine_transform(n: int, kind: Literal[2, 3, 4] = 2, *, normalized: bool = False) -> ButterflyTransform:
    """scipy.fft.dct of this type and n = 2^m entries; `normalized` is its norm="ortho"."""
    cosine = _cosine(n, _amplitudes(n, kind, normalized), shifted=kind == 4)
    return _transposed(cosine) if kind == 3 else cosine


def sine_transform(n: int, kind: Literal[2, 3, 4] = 2, *, normalized: bool = False) -> ButterflyTransform:
    """scipy.fft.dst of this type and n = 2^m entries; `normalized` is its norm="ortho"."""
    signs = 1.0 - 2.0 * (torch.arange(n, dtype=torch.float64) % 2)
    backwards = torch.arange(n).flip(0)
    if kind == 4:  # the cosine transform of x backwards, with alternating signs
        cosine = _cosine(n, signs * _amplitudes(n, kind, normalized), shifted=True)
        return cosine._replace(order_before=backwards[cosine.order_before])
    cosine = _cosine(n, _amplitudes(n, kind, normalized), signs=signs)
    sine = cosine._replace(order_after=backwards)  # of x with alternating signs, backwards
    return sine if kind == 2 else _transposed(sine)


def circulant_transform(column: Inexact[Tensor, " n"]) -> ButterflyTransform:
    """The circulant matrix with this first column: circular convolution with it.  Differentiable in the column."""
    n = len(column)
    if n == 1 or n & (n - 1):
        return toeplitz_transform(column, torch.cat([column[:1], column[1:].flip(0)]))
    return _circulant(column, n)


def toeplitz_transform(column: Inexact[Tensor, " n"], row: Inexact[Tensor, " n"]) -> ButterflyTransform:
    """The Toeplitz matrix with this first column and row, of which row[0] is not read.

    A row of zeros makes it the causal convolution with `column`.
    """
    n = len(column)
    gap = column.new_zeros(max(2, 2 ** (2 * n - 2).bit_length()) - (2 * n - 1))
    return _circulant(torch.cat([column, gap, row[1:].flip(0)]), n)


def _circulant(column: Tensor, size: int) -> ButterflyTransform:
    n, wide = len(column), torch.promote_types(column.dtype, torch.float64)
    spectrum = torch.fft.fft(column.to(wide))[bit_reversal(n).to(column.device)]
    forward = _scale_last(transpose_twiddle(_fourier_twiddle(n, False)).to(column.device), spectrum, stride=1)
    inverse = _fourier_twiddle(n, True).to(column.device) / 2
    return ButterflyTransform(torch.cat([forward, inverse], dim=1), False, size, real=not column.is_complex())


def _fourier_twiddle(n: int, inverse: bool) -> Complex[Tensor, "1 1 m h 2 2"]:
    """Decimation in time, the strides increasing, without normalisation."""
    levels = levels_of(n, "fourier_transform")
    if levels == 0:
        raise InputError("a butterfly has two entries or more, not 1")
    factors = []
    for level in range(levels):
        stride = 2**level
        angle = torch.arange(stride, dtype=torch.float64) * (math.pi / stride * (1 if inverse else -1))
        turn = torch.polar(torch.ones_like(angle), angle)
        one = torch.ones_like(turn)
        factor = torch.stack([one, turn, one, -turn], dim=-1).unflatten(-1, (2, 2))
        factors.append(factor.repeat(n // (2 * stride), 1, 1))
    return torch.stack(factors)[None, None]


def _cosine(n: int, amplitudes: Tensor, *, shifted: bool = False, signs: Tensor | None = None) -> ButterflyTransform:
    """y_k = amplitudes_k sum_i signs_i x_i cos(pi / n (k [+ 1/2]) (i + 1/2)); the 1/2 in brackets if shifted."""
    order = torch.arange(n)
    order = torch.cat([order[::2], order[1::2].flip(0)])[bit_reversal(n)]
    place = torch.arange(n, dtype=torch.float64)
    ones = torch.ones_like(place)
    scale = ones if signs is None else signs
    if shifted:
        scale = torch.polar(scale, (place + 0.5) * (1 - 2 * (place % 2)) * (-math.pi / (2 * n)))
    twiddle = _fourier_twiddle(n, False)
    twiddle = transpose_twiddle(_scale_last(transpose_twiddle(twiddle), scale[order], stride=1))
    phase = torch.polar(ones, place * (-math.pi / (2 * n)))
    return ButterflyTransform(_scale_last(twiddle, amplitudes * phase, stride=n // 2), True, n, order, real=True)


def _amplitudes(n: int, kind: int, normalized: bool) -> Tensor:
    """2, or what makes the transform orthogonal; scipy's types 2 and 3 treat the lowest frequency in their own ways."""
    amplitudes = torch.full((n,), math.sqrt(2 / n) if normalized else 2.0, dtype=torch.float64)
    if kind == 2 and normalized:
        amplitudes[0] /= math.sqrt(2)
    if kind == 3:
        amplitudes[0] /= math.sqrt(2) if normalized else 2
    return amplitudes


def _scale_last(twiddle: Tensor, scale: Tensor, stride: int) -> Tensor:
    """The twiddle with its last factor, of this stride, multiplied from the left with a diagonal matrix."""
    rows = scale.unflatten(0, (-1, 2, stride)).mT.flatten(0, 1)  # (h, 2)
    last = twiddle[:, :, -1:] * rows[..., None]
    return torch.cat([twiddle[:, :, :-1].to(last.dtype), last], dim=2)


def _transposed(transform: ButterflyTransform) -> ButterflyTransform:
    """The transposed matrix, of one block."""
    before, after = (None if o is None else o.argsort() for o in (transform.order_before, transform.order_after))
    return transform._replace(
        twiddle=transpose_twiddle(transform.twiddle),
        increasing=not transform.increasing,
        order_before=after,
        order_after=before,
    )
