"""Convolution with a filter as long as the sequence, the parallel view of every time-invariant mixer.

    y_t = gate_after_t * (sum_j kernel_j v_{t-j}  +  sum_j reverse_kernel_j v_{t+j+reverse_lag}  +  skip v_t)
    v_t = gate_before_t * u_t

Time is linear (what lies outside of 0 .. l-1 is zero) or circular with a given period.  Two conventions are published
for the filter that looks into the future: it starts one step ahead (`reverse_lag` 1: S4, LongConv, M2) or at the
present, which both filters then see (`reverse_lag` 0: safari, H3).

Hyena (https://arxiv.org/abs/2302.10866) and FlashFFTConv (https://arxiv.org/abs/2311.05908) are built on this operator.

Axes: b batch, d channels (each with its own filter), l length, k and k2 numbers of taps.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.differentiable_once import differentiable_once
from longreach.ops.fft_conv import Plan, fft_conv, linear_plan
from longreach.ops.long_conv_native import DTYPES, native_long_conv
from longreach.ops.native import refusal
from longreach.ops.triton import available
from longreach.ops.triton.long_conv import DTYPES as TRITON_DTYPES
from longreach.ops.triton.long_conv import triton_long_conv
from longreach.ops.triton.long_conv_plan import LONGEST


def _toeplitz(kernel: Tensor, lag: Tensor) -> Tensor:
    """The matrix kernel[lag], zero where there is no such tap."""
    inside = (lag >= 0) & (lag < kernel.shape[-1])
    return pad(kernel, (0, 1))[:, torch.where(inside, lag, kernel.shape[-1])]


def _check(u: Tensor, filters: tuple[Tensor | None, ...], gates: tuple[Tensor | None, ...], reverse_lag: int) -> None:
    given = [x for x in filters if x is not None]
    gates_fit = all(gate is None or gate.shape == u.shape for gate in gates)
    if not gates_fit or any(x.shape[0] != u.shape[1] for x in given) or 0 in (u.shape[-1], given[0].shape[-1]):
        raise InputError(
            f"long_conv: u is {tuple(u.shape)}; kernels must be ({u.shape[1]}, taps), skip ({u.shape[1]},) and gates "
            f"like u, none of them empty; got {[tuple(x.shape) for x in (*filters, *gates) if x is not None]}"
        )
    if reverse_lag not in (0, 1):
        raise InputError(f"long_conv: reverse_lag={reverse_lag}; the reverse kernel starts at lag 0 or at lag 1")


def _check_period(period: int | None, length: int) -> None:
    if period is not None and period < length:
        raise InputError(
            f"long_conv: period={period} is less than the length {length} of u; cut u or take a longer one"
        )


@op
def long_conv(
    u: Float[Tensor, "b d l"],
    kernel: Float[Tensor, "d k"],
    *,
    reverse_kernel: Float[Tensor, "d k2"] | None = None,
    reverse_lag: int = 1,
    skip: Float[Tensor, " d"] | None = None,
    gate_before: Float[Tensor, "b d l"] | None = None,
    gate_after: Float[Tensor, "b d l"] | None = None,
    period: int | None = None,
) -> Float[Tensor, "b d l"]:
    """Filter every channel of `u` with its own kernels.  The definition costs O(l^2), computed in float32 or wider."""
    _check(u, (kernel, reverse_kernel, skip), (gate_before, gate_after), reverse_lag)
    _check_period(period, u.shape[-1])
    wide = torch.promote_types(u.dtype, torch.float32)
    v = u.to(wide) if gate_before is None else gate_before.to(wide) * u.to(wide)
    position = torch.arange(u.shape[-1], device=u.device)
    lag = position[:, None] - position  # (l, l)
    taps = max(kernel.shape[-1], 0 if reverse_kernel is None else reverse_kernel.shape[-1])
    turns = 0 if period is None else (u.shape[-1] + taps) // period
    matrix = torch.zeros_like(lag, dtype=wide).expand(u.shape[1], -1, -1)
    for turn in range(-turns, turns + 1):
        shift = 0 if period is None else turn * period
        matrix = matrix + _toeplitz(kernel.to(wide), lag + shift)
        if reverse_kernel is not None:
            matrix = matrix + _toeplitz(reverse_kernel.to(wide), shift - lag - reverse_lag)
    y = torch.einsum("dtj,bdj->bdt", matrix, v)
    if skip is not None:
        y = y + skip.to(wide)[:, None] * v
    return (y if gate_after is None else gate_after.to(wide) * y).to(u.dtype)


@long_conv.backend("fft")
def _fft(
    u: Tensor,
    kernel: Tensor,
    *,
    reverse_kernel: Tensor | None = None,
    reverse_lag: int = 1,
    skip: Tensor | None = None,
    gate_before: Tensor | None = None,
    gate_after: Tensor | None = None,
    period: int | None = None,
) -> Tensor:
    """O(l log l): circular at a size at which nothing wraps around, or at the period that is asked for."""
    _check(u, (kernel, reverse_kernel, skip), (gate_before, gate_after), reverse_lag)
    _check_period(period, u.shape[-1])
    wide = torch.promote_types(u.dtype, torch.float32)
    length = u.shape[-1]
    taps, future = kernel.to(wide), None
    if reverse_kernel is not None and reverse_kernel.shape[-1] > 0:
        future = reverse_kernel.to(wide)
    if period is not None:
        plan = Plan(period, length)
        taps, future = _fold(taps, period), None if future is None else _fold(future, period)
    else:  # taps that no input ever meets are left out
        taps = taps[:, :length]
        future = None if future is None else future[:, : length - reverse_lag]
        plan = linear_plan(length, taps.shape[-1], 0 if future is None else future.shape[-1] + reverse_lag - 1)
    if future is not None:  # lag -1 is the last place on the circle
        taps = pad(taps, (0, plan.size - taps.shape[-1]))
        taps = taps + pad(future, (0, plan.size - future.shape[-1])).flip(-1).roll(1 - reverse_lag, -1)
    skip = None if skip is None else skip.to(wide)
    return fft_conv(u, taps, skip, gate_before, gate_after, plan)


def _native_refuses(u: Tensor, kernel: Tensor, *, period: int | None = None, **_: object) -> str | None:
    if period is not None:
        return "convolves on a line, not on a circle"
    wide = torch.promote_types(torch.promote_types(u.dtype, kernel.dtype), torch.float32)
    return refusal(u.device, wide, DTYPES)


@long_conv.backend("native", refuses=_native_refuses)
def _native(
    u: Tensor,
    kernel: Tensor,
    *,
    reverse_kernel: Tensor | None = None,
    reverse_lag: int = 1,
    skip: Tensor | None = None,
    gate_before: Tensor | None = None,
    gate_after: Tensor | None = None,
    period: int | None = None,
) -> Tensor:
    """O(l log l) in compiled code, without padding, and with everything around the convolution fused."""
    _check(u, (kernel, reverse_kernel, skip), (gate_before, gate_after), reverse_lag)
    _check_period(period, u.shape[-1])
    wide = torch.promote_types(u.dtype, torch.float32)
    optional = (reverse_kernel, skip, gate_before, gate_after)
    reverse, skip, before, after = (None if x is None else x.to(wide) for x in optional)
    return native_long_conv(u.to(wide), kernel.to(wide), reverse, skip, before, after, reverse_lag).to(u.dtype)


def _triton_refuses(
    u: Tensor,
    kernel: Tensor,
    *,
    reverse_kernel: Tensor | None = None,
    skip: Tensor | None = None,
    gate_before: Tensor | None = None,
    gate_after: Tensor | None = None,
    **_: object,
) -> str | None:
    given = [x for x in (kernel, reverse_kernel, skip, gate_before, gate_after) if x is not None]
    odd = next((x.dtype for x in given if x.dtype not in TRITON_DTYPES), u.dtype)
    if u.shape[-1] > LONGEST:
        return f"takes up to {LONGEST} samples"
    return available.refusal(u.device, odd, TRITON_DTYPES)


def _triton_yields(u: Tensor, kernel: Tensor, **_: object) -> str | None:
    return available.interpretation(u.device)


@long_conv.backend("triton", refuses=_triton_refuses, yields=_triton_yields)
def _triton(
    u: Tensor,
    kernel: Tensor,
    *,
    reverse_kernel: Tensor | None = None,
    reverse_lag: int = 1,
    skip: Tensor | None = None,
    gate_before: Tensor | None = None,
    gate_after: Tensor | None = None,
    period: int | None = None,
) -> Tensor:
    """By products of matrices on tensor cores, without padding, and with everything around the convolution fused."""
    _check(u, (kernel, reverse_kernel, skip), (gate_before, gate_after), reverse_lag)
    _check_period(period, u.shape[-1])
    filters = _by_lag(u.shape[-1], kernel, reverse_kernel, reverse_lag, period)
    skip = None if skip is None else skip.float()
    optional = (skip, gate_before, gate_after)
    return triton_long_conv(
        differentiable_once(u, "long_conv"),
        differentiable_once(filters, "long_conv"),
        *(None if x is None else differentiable_once(x, "long_conv") for x in optional),
    )


def _by_lag(length: int, kernel: Tensor, reverse: Tensor | None, reverse_lag: int, period: int | None) -> Tensor:
    """What every lag is multiplied with, up to `length` - 1, in float32: of the past and of the future, if any.

    On a circle an input is met once in the past, or one turn later in the future, whatever the period is.
    """
    past = kernel.float()
    future = None if reverse is None or reverse.shape[-1] == 0 else pad(reverse.float(), (reverse_lag, 0))
    if period is not None:
        circle = _up_to(_fold(past, period), period)
        if future is not None:
            ahead = _up_to(_fold(future, period), period)
            circle = circle + ahead.flip(-1).roll(1, -1)
        past, future = circle, circle.roll(-1, -1).flip(-1)  # lag s of the future is lag period - s of the past
        future = future * (torch.arange(period, device=future.device) > 0)
    past = _up_to(past, length)
    return past[None] if future is None else torch.stack([past, _up_to(future, length)])


def _up_to(kernel: Tensor, length: int) -> Tensor:
    """The first `length` taps, the missing ones zero."""
    return pad(kernel, (0, length - kernel.shape[-1]))


def _fold(kernel: Tensor, period: int) -> Tensor:
    """Taps that lie whole periods apart, added up; a filter that fits into a period is left as it is."""
    if kernel.shape[-1] <= period:
        return kernel
    return pad(kernel, (0, -kernel.shape[-1] % period)).unflatten(-1, (-1, period)).sum(-2)


def low_pass(kernel: Float[Tensor, "d k"], length: int, keep: int) -> Float[Tensor, "d {2*length}"]:
    """The kernel without its high frequencies: bins >= `keep` of its spectrum of size 2 * length are set to zero.

    This is the frequency-sparse convolution of FlashFFTConv; the result has 2 * length taps, to be used with
    `long_conv(..., period=2 * length)`, and it is no longer causal.
    """
    spectrum = torch.fft.rfft(kernel, n=2 * length)
    kept = torch.arange(length + 1, device=kernel.device) < keep
    return torch.fft.irfft(spectrum * kept, n=2 * length)
