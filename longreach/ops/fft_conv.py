"""Convolution by fast Fourier transform, a few channels at a time, with derivatives that keep no spectra.

    y = gate_after * (irfft(rfft(v) * rfft(taps)) + skip * v),      v = gate_before * u

The convolution is circular with the size of the transform; whoever calls makes that size large enough that nothing
wraps around, or wants it to.  A filter that is short against the input is applied block by block instead (overlap-add):
blocks of `stride` inputs give `size` outputs each, which overlap by size - stride.

Why in groups of channels: a transform of everything at once writes and reads temporaries several times as large as the
input, far outside of the cache, and their memory comes fresh from the operating system in every call.  Groups that fit
into the cache take less than half the time and almost no memory (docs/operators.md).

Axes: b batch, d channels (c of them in a group), l length, k taps, m blocks, f frequencies.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from longreach.ops.gradients import gradients_by_autograd

CACHE = 1 << 21
"""Bytes that the transform of a group of channels takes per thread on a CPU."""

FEWEST_CHANNELS = 8
"""Transforms of single rows are several times slower than of a few rows together (MKL)."""

SMALLEST_BLOCK = 512
"""Of the blocks that a short filter is applied to; smaller transforms are not faster per output."""

ACCELERATOR_WORKSPACE = 1 << 28
"""Bytes of a group on an accelerator, where large batches of transforms are best."""


class Plan(NamedTuple):
    """How a convolution is cut into transforms."""

    size: int
    """Of the transforms."""
    stride: int
    """Inputs per block; at least size / 2 unless one block takes the whole input."""


class Arguments(NamedTuple):
    """The tensors of the equation, for all channels or for a group of them."""

    u: Tensor
    taps: Tensor
    skip: Tensor | None
    gate_before: Tensor | None
    gate_after: Tensor | None


Gradients = tuple[Tensor | None, ...]
"""In the order of the arguments, None where they are not wanted."""


def fast_size(least: int) -> int:
    """The smallest of 2^a, 9/8 2^a, 5/4 2^a, 3/2 2^a from `least` on: richer factors cost more than they save."""
    power = 1 << max(least - 1, 0).bit_length()
    rich = (power // 16 * sixteenths for sixteenths in (9, 10, 12)) if power >= 32 else ()
    return next((size for size in rich if size >= least), power)


def linear_plan(length: int, taps: int, future: int) -> Plan:
    """For a filter that reaches taps - 1 steps into the past and `future` steps into the future.

    One transform in which neither wraps around; or blocks, where a causal filter is short against the input.
    """
    size = max(fast_size(4 * taps), SMALLEST_BLOCK)
    if future == 0 and 2 * size <= length:
        return Plan(size, size - taps + 1)
    return Plan(fast_size(length + max(taps - 1, future)), length)


def fft_conv(
    u: Float[Tensor, "b d l"],
    taps: Float[Tensor, "d k"],
    skip: Float[Tensor, " d"] | None,
    gate_before: Float[Tensor, "b d l"] | None,
    gate_after: Float[Tensor, "b d l"] | None,
    plan: Plan,
) -> Float[Tensor, "b d l"]:
    """The equation above; `taps` and `skip` in float32 or wider, which is also what everything is computed in.

    Time O(b d l log size), memory O(size) per channel of a group.  Any number of derivatives.
    """
    if len(u) == 0:  # torch transforms no empty batch
        one_row = (0, 0) * 2 + (0, 1)
        gates = (None if gate is None else pad(gate, one_row) for gate in (gate_before, gate_after))
        return _FFTConv.apply(pad(u, one_row), taps, skip, *gates, plan)[:0]
    return _FFTConv.apply(u, taps, skip, gate_before, gate_after, plan)


class _FFTConv(torch.autograd.Function):
    @staticmethod
    def forward(
        u: Tensor, taps: Tensor, skip: Tensor | None, before: Tensor | None, after: Tensor | None, plan: Plan
    ) -> Tensor:
        everything = Arguments(u, taps, skip, before, after)
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        for channels in _channel_groups(u, plan):
            y[:, channels] = _forward(Arguments(*_select(everything, channels)), plan)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.plan = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Gradients:
        (grad,) = grad_outputs
        everything, needed = Arguments(*ctx.saved_tensors), ctx.needs_input_grad[:5]
        wanted = [x if need else None for x, need in zip(everything, needed, strict=True)]
        if torch.is_grad_enabled():  # second derivatives: let autograd differentiate the plain expression
            return *gradients_by_autograd(lambda *xs: _plain(Arguments(*xs), ctx.plan), everything, needed, grad), None
        grads = tuple(None if x is None else torch.empty_like(x, memory_format=torch.contiguous_format) for x in wanted)
        for channels in _channel_groups(grad, ctx.plan):
            arguments = Arguments(*_select(everything, channels))
            _backward(grad[:, channels], arguments, _select(grads, channels), ctx.plan)
        return *grads, None


def _channel_groups(u: Tensor, plan: Plan) -> list[slice]:
    """The channels cut into groups whose transforms fit into the cache."""
    blocks = -(-u.shape[-1] // plan.stride)
    bytes_per_channel = 4 * u.shape[0] * blocks * plan.size
    threads = 1 if torch.compiler.is_compiling() else torch.get_num_threads()  # which cannot be traced
    budget = CACHE * threads if u.device.type == "cpu" else ACCELERATOR_WORKSPACE
    step = max(FEWEST_CHANNELS, budget // bytes_per_channel)
    return [slice(start, start + step) for start in range(0, u.shape[1], step)]


def _select(everything: tuple[Tensor | None, ...], channels: slice) -> tuple[Any, ...]:
    """Views of a group of channels of the arguments, or of their gradients."""
    u, taps, skip, before, after = everything
    return (
        None if u is None else u[:, channels],
        None if taps is None else taps[channels],
        None if skip is None else skip[channels],
        None if before is None else before[:, channels],
        None if after is None else after[:, channels],
    )


def _gated(x: Tensor, gate: Tensor | None) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x if gate is None else x * gate


def _with_skip(z: Tensor, skip: Tensor | None, v: Tensor) -> Tensor:
    return z if skip is None else z.addcmul_(v, skip[:, None])


def _forward(arguments: Arguments, plan: Plan) -> Tensor:
    u, taps, skip, before, after = arguments
    v = _gated(u, before)
    product = _spectra_of_blocks(v, plan).mul_(torch.fft.rfft(taps, n=plan.size)[:, None])
    z = _with_skip(_overlap_add(product, plan, v.shape[-1]), skip, v)
    return z if after is None else z.mul_(after)


def _backward(grad: Tensor, arguments: Arguments, grads: Gradients, plan: Plan) -> None:
    """Write the derivatives of one group of channels into `grads`."""
    u, taps, skip, before, after = arguments
    grad_u, grad_taps, grad_skip, grad_before, grad_after = grads
    v, grad_z = _gated(u, before), _gated(grad, after)
    transfer = torch.fft.rfft(taps, n=plan.size)[:, None]  # (c, 1, f)
    sent = _spectra_of_frames(grad_z, plan)  # (b, c, m, f)
    if grad_after is not None or grad_taps is not None:
        seen = _spectra_of_blocks(v, plan)  # (b, c, m, f)
        if grad_after is not None:
            z = _with_skip(_overlap_add(seen * transfer, plan, v.shape[-1]), skip, v)
            grad_after.copy_(z.mul_(grad))
        if grad_taps is not None:
            correlation = seen.conj_physical_().mul_(sent).sum((0, 2))
            grad_taps.copy_(torch.fft.irfft(correlation, n=plan.size)[:, : taps.shape[-1]])
    if grad_skip is not None:
        grad_skip.copy_((grad_z * v).sum((0, 2)))
    if grad_u is not None or grad_before is not None:
        grad_v = _first_of_frames(sent.mul_(transfer.conj_physical_()), plan, v.shape[-1])
        grad_v = _with_skip(grad_v, skip, grad_z)
        if grad_before is not None:
            grad_before.copy_(grad_v * u)
        if grad_u is not None:
            grad_u.copy_(grad_v if before is None else grad_v.mul_(before))


def _spectra_of_blocks(v: Tensor, plan: Plan) -> Tensor:
    """Of `stride` consecutive values each, (b, c, m, f)."""
    length = v.shape[-1]
    if length <= plan.stride:
        return torch.fft.rfft(v[:, :, None], n=plan.size)
    blocks = pad(v, (0, -length % plan.stride)).unflatten(-1, (-1, plan.stride))
    return torch.fft.rfft(blocks, n=plan.size)


def _overlap_add(spectra: Tensor, plan: Plan, length: int) -> Tensor:
    """The signal whose blocks have these spectra, where each block reaches into the next one."""
    z = torch.fft.irfft(spectra, n=plan.size)  # (b, c, m, size)
    if z.shape[2] == 1:
        return z[:, :, 0, :length]
    y = z[..., : plan.stride].contiguous()
    y[:, :, 1:, : plan.size - plan.stride] += z[:, :, :-1, plan.stride :]
    return y.flatten(-2)[..., :length]


def _spectra_of_frames(grad: Tensor, plan: Plan) -> Tensor:
    """Of the `size` values from the beginning of each block on: the adjoint of the overlapping in `_overlap_add`."""
    length = grad.shape[-1]
    if length <= plan.stride:
        return torch.fft.rfft(grad[:, :, None], n=plan.size)
    starts = -(-length // plan.stride) - 1
    padded = pad(grad, (0, starts * plan.stride + plan.size - length))
    return torch.fft.rfft(padded.unfold(-1, plan.size, plan.stride))


def _first_of_frames(spectra: Tensor, plan: Plan, length: int) -> Tensor:
    """The first `stride` values of every frame, one after the other: the adjoint of cutting into blocks."""
    z = torch.fft.irfft(spectra, n=plan.size)
    return z[:, :, 0, :length] if z.shape[2] == 1 else z[..., : plan.stride].flatten(-2)[..., :length]


def _plain(arguments: Arguments, plan: Plan) -> Tensor:
    """The same as one expression that autograd can differentiate any number of times."""
    u, taps, skip, before, after = arguments
    length = u.shape[-1]
    size = plan.size if length <= plan.stride else fast_size(length + taps.shape[-1])
    v = _gated(u, before)
    z = torch.fft.irfft(torch.fft.rfft(v, n=size) * torch.fft.rfft(taps, n=size), n=size)[..., :length]
    z = z if skip is None else z + skip[:, None] * v
    return (z if after is None else z * after).to(u.dtype)
