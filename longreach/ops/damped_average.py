"""Damped averages of every channel, read out with weights of their own: the moving average of Mega.

    s_t,n = s_{t-1},n + (x_t - forgotten_n s_{t-1},n)          y_t = skip x_t + sum_n weight_n s_t,n

That is a convolution with the taps  sum_n weight_n (1 - forgotten_n)^l.  A second set of coefficients adds the same
read from the end, so that the present counts in both.  (Ma et al. 2022, https://arxiv.org/abs/2209.10655, section 3.1.)

Axes: b batch, l length, d channels, n averages of a channel, r directions: past, or past and future.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.damped_average_native import DTYPES, native_damped_average
from longreach.ops.long_conv import long_conv
from longreach.ops.native import refusal
from longreach.ops.transposed import transposed
from longreach.ops.vandermonde import vandermonde


@op
def damped_average(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "r d n"],
    forgotten: Float[Tensor, "r d n"],
    skip: Float[Tensor, " d"],
) -> Float[Tensor, "b l d"]:
    """The averages of the whole sequence, in the common dtype.  Time O(b l d n), in l steps one after the other."""
    x, weight, forgotten, skip = _common(x, weight, forgotten, skip)
    y = skip * x
    for direction, (w, f) in enumerate(zip(weight, forgotten, strict=True)):
        state, read = x.new_zeros(*x[:, 0].shape, weight.shape[-1]), []
        for x_t in (x.flip(1) if direction else x).unbind(1):
            state = state + (x_t[..., None] - f * state)
            read.append((w * state).sum(-1))
        y = y + torch.stack(read[::-1] if direction else read, dim=1)
    return y


@damped_average.backend("convolution")
def _convolution(x: Tensor, weight: Tensor, forgotten: Tensor, skip: Tensor) -> Tensor:
    """The taps, O(d n l) once for the batch, and a convolution of all channels, O(b d l log l)."""
    x, weight, forgotten, skip = _common(x, weight, forgotten, skip)
    log_decay = torch.log1p(-forgotten.clamp(max=1 - torch.finfo(forgotten.dtype).eps))  # finite where nothing is kept
    half, exponents = (torch.complex(z, torch.zeros_like(z)).flatten(0, 1) for z in (weight / 2, log_decay))
    past, *future = vandermonde(half, exponents, x.shape[1]).unflatten(0, weight.shape[:2])
    y = long_conv(transposed(x), past, reverse_kernel=future[0] if future else None, reverse_lag=0, skip=skip)
    return transposed(y)


def _native_refuses(x: Tensor, weight: Tensor, forgotten: Tensor, skip: Tensor) -> str | None:
    return refusal(x.device, _dtype(x, weight, forgotten, skip), DTYPES)


@damped_average.backend("native", refuses=_native_refuses)
def _native(x: Tensor, weight: Tensor, forgotten: Tensor, skip: Tensor) -> Tensor:
    """Step by step in compiled code, with a few averages of some channels in registers."""
    return native_damped_average(*_common(x, weight, forgotten, skip))


def _dtype(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _common(x: Tensor, weight: Tensor, forgotten: Tensor, skip: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The arguments in their common dtype, at least float32, after a look at their shapes."""
    directions, channels, averages = weight.shape
    fits = forgotten.shape == weight.shape and skip.shape == (channels,) and x.shape[2] == channels
    if not fits or x.shape[1] == 0 or averages == 0 or directions not in (1, 2):
        raise InputError(
            f"damped_average: x {tuple(x.shape)} must be (batch, length >= 1, channels), weight {tuple(weight.shape)} "
            f"and forgotten {tuple(forgotten.shape)} (1 or 2 directions, channels, averages >= 1), "
            f"skip {tuple(skip.shape)} (channels,)"
        )
    dtype = _dtype(x, weight, forgotten, skip)
    return x.to(dtype), weight.to(dtype), forgotten.to(dtype), skip.to(dtype)
