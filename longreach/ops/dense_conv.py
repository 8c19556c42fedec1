"""Causal convolution in which every output channel sees every input channel, with a filter for each pair (CKConv).

    y_t,o = sum_i sum_{j < k} kernel_o,i,j x_{t-j},i

Axes: b batch, i input channels, o output channels, l length, k taps, p inputs before x.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv1d, pad

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.fft_conv import fast_size

FEW = 128
"""With fewer taps, or fewer outputs, than this the direct sum is the faster one."""


def _with_past(x: Tensor, kernel: Tensor, past: Tensor | None) -> Tensor:
    """`x` preceded by the k - 1 inputs before it, zeros where there is no `past`; float32 or wider."""
    if x.shape[1] != kernel.shape[1] or (past is not None and past.shape[:2] != x.shape[:2]):
        given = None if past is None else tuple(past.shape)
        raise InputError(
            f"dense_conv: x is {tuple(x.shape)} and past {given}; they need the same batch, and the input channels of "
            f"the kernel {tuple(kernel.shape)}"
        )
    wide, needed = torch.promote_types(x.dtype, torch.float32), kernel.shape[-1] - 1
    x = x.to(wide)
    joined = x if past is None else torch.cat([past[..., max(0, past.shape[-1] - needed) :].to(wide), x], dim=-1)
    return pad(joined, (x.shape[-1] + needed - joined.shape[-1], 0))


@op
def dense_conv(
    x: Float[Tensor, "b i l"], kernel: Float[Tensor, "o i k"], past: Float[Tensor, "b i p"] | None = None
) -> Float[Tensor, "b o l"]:
    """The outputs at the positions of `x`; `past` holds the inputs before it (None: zeros), oldest first.

    O(b o i l k), in float32 or wider; the result has the dtype of `x`.
    """
    joined = _with_past(x, kernel, past)
    return conv1d(joined, kernel.to(joined.dtype).flip(-1)).to(x.dtype)


def _fft_yields(x: Tensor, kernel: Tensor, past: Tensor | None = None) -> str | None:
    if min(x.shape[-1], kernel.shape[-1]) < FEW:
        return f"there are fewer than {FEW} outputs or taps"
    return None


@dense_conv.backend("fft", yields=_fft_yields)
def _fft(x: Tensor, kernel: Tensor, past: Tensor | None = None) -> Tensor:
    """O(n log n (b i + o i + b o) + n b o i) with n = l + k; the spectrum of the kernel takes O(n o i) memory."""
    joined = _with_past(x, kernel, past)
    size = fast_size(joined.shape[-1])  # what wraps around lands on the past, whose outputs nobody wants
    spectrum = torch.fft.rfft(joined, n=size).movedim(-1, 0)  # (f, b, i)
    transfer = torch.fft.rfft(kernel.to(joined.dtype), n=size).movedim(-1, 0)  # (f, o, i)
    y = torch.fft.irfft((spectrum @ transfer.mT).movedim(0, -1), n=size)
    return y[..., kernel.shape[-1] - 1 : joined.shape[-1]].to(x.dtype)
