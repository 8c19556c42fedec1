"""The elementwise linear recurrence, the common core of S5, Liquid-S4, Mega's moving average and gated linear RNNs.

    h_t = a_t * h_{t-1} + x_t            t = 0 .. l-1,   h_{-1} = initial

Three ways to the same states: the loop; doubling, in log2(l) passes over everything (Hillis and Steele,
https://doi.org/10.1145/7902.7903); and two levels: blocks of about sqrt(l) positions walk in step, once to find what
each block does to the state that enters it, and once more from the right state.

Axes: b batch, l length, n channels (real or complex; every channel is independent), m blocks of t positions each.
"""

import math
from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.linear_scan_native import DTYPES, native_scan
from longreach.ops.native import refusal
from longreach.ops.triton import available
from longreach.ops.triton.linear_scan import DTYPES as TRITON_DTYPES
from longreach.ops.triton.linear_scan import triton_scan


def _common(a: Tensor, x: Tensor, initial: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments in their common dtype, after a look at their shapes."""
    if a.shape != x.shape or initial.shape != (x.shape[0], x.shape[2]) or x.shape[1] == 0:
        raise InputError(
            f"linear_scan: a {tuple(a.shape)} and x {tuple(x.shape)} must both be (batch, length >= 1, channels) and "
            f"initial {tuple(initial.shape)} must be (batch, channels)"
        )
    dtype = torch.promote_types(torch.promote_types(a.dtype, x.dtype), initial.dtype)
    return a.to(dtype), x.to(dtype), initial.to(dtype)


@op
def linear_scan(
    a: Num[Tensor, "b l n"],
    x: Num[Tensor, "b l n"],
    initial: Num[Tensor, "b n"],
) -> Num[Tensor, "b l n"]:
    """All states h_0 .. h_{l-1} of h_t = a_t * h_{t-1} + x_t, starting from h_{-1} = `initial`.

    The result has the common dtype of the arguments.  Time O(b l n); the loop takes l steps one after the other.
    """
    a, x, initial = _common(a, x, initial)
    h, states = initial, []
    for a_t, x_t in zip(a.unbind(1), x.unbind(1), strict=True):
        h = a_t * h + x_t
        states.append(h)
    return torch.stack(states, dim=1)


@linear_scan.backend("doubling")
def _doubling(a: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """After pass k every position has absorbed its 2^k predecessors: the fewest steps, and the most arithmetic."""
    a, x, initial = _common(a, x, initial)
    h = torch.cat([x[:, :1] + a[:, :1] * initial[:, None], x[:, 1:]], dim=1)
    span = 1
    while span < x.shape[1]:
        h = torch.cat([h[:, :span], h[:, span:] + a[:, span:] * h[:, :-span]], dim=1)
        a = torch.cat([a[:, :span], a[:, span:] * a[:, :-span]], dim=1)
        span *= 2
    return h


def _blocked_yields(a: Tensor, x: Tensor, initial: Tensor) -> str | None:
    return None if x.device.type == "cpu" else "takes O(sqrt(l)) small steps where doubling takes log2(l) large ones"


@linear_scan.backend("blocked", yields=_blocked_yields)
def _blocked(a: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """O(sqrt(l)) steps, each of them on all blocks at once; keeps nothing for the backward pass but a and h."""
    return _BlockedScan.apply(*_common(a, x, initial), False)


def _native_refuses(a: Tensor, x: Tensor, initial: Tensor) -> str | None:
    dtype = torch.promote_types(torch.promote_types(a.dtype, x.dtype), initial.dtype)
    return refusal(x.device, dtype, DTYPES)


@linear_scan.backend("native", refuses=_native_refuses)
def _native(a: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """One pass over the arguments and one over their adjoints, in compiled code."""
    return native_scan(*_common(a, x, initial))


def _triton_refuses(a: Tensor, x: Tensor, initial: Tensor) -> str | None:
    dtype = torch.promote_types(torch.promote_types(a.dtype, x.dtype), initial.dtype)
    return available.refusal(x.device, dtype, TRITON_DTYPES)


def _triton_yields(a: Tensor, x: Tensor, initial: Tensor) -> str | None:
    return available.interpretation(x.device)


@linear_scan.backend("triton", refuses=_triton_refuses, yields=_triton_yields)
def _triton(a: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """Chunks of time side by side on a GPU, in two passes over the arguments at most."""
    return triton_scan(*_common(a, x, initial))


class _BlockedScan(torch.autograd.Function):
    """Both directions of the recurrence; backwards in time (`reverse`) it is h_t = a_t h_{t+1} + x_t."""

    @staticmethod
    def forward(a: Tensor, x: Tensor, initial: Tensor, reverse: bool) -> Tensor:
        return _scan_in_blocks(a.resolve_conj(), x, initial, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        a, _, initial, ctx.reverse = inputs
        ctx.save_for_backward(a, initial, output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The adjoint is the recurrence in the other direction: g_t = grad_t + conj(a_{t+1}) g_{t+1}."""
        (grad,), (a, initial, h) = grad_outputs, ctx.saved_tensors
        if h.shape[1] == 0:  # as in the derivative of the derivative of one position
            return torch.zeros_like(a), grad, torch.zeros_like(initial), None
        first, last, later, earlier = 0, -1, slice(1, None), slice(None, -1)
        if ctx.reverse:
            first, last, later, earlier = last, first, earlier, later
        rest = _BlockedScan.apply(a[:, later].conj(), grad[:, earlier], grad[:, last], not ctx.reverse)
        g = _in_time(rest, grad[:, last, None], ctx.reverse)
        grad_a = None
        if ctx.needs_input_grad[0]:
            grad_a = _in_time((g[:, first] * initial.conj())[:, None], g[:, later] * h[:, earlier].conj(), ctx.reverse)
        return grad_a, g, g[:, first] * a[:, first].conj(), None


def _in_time(before: Tensor, after: Tensor, reverse: bool) -> Tensor:
    return torch.cat([after, before] if reverse else [before, after], dim=1)


def _scan_in_blocks(a: Tensor, x: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    """Fill h block by block; the positions that fill no block come last, one by one."""
    length = x.shape[1]
    block = math.isqrt(length)
    blocks = length // block if block else 0
    direction = -1 if reverse else 1
    h = torch.empty_like(x, memory_format=torch.contiguous_format)
    if length == 0:
        return h
    whole = slice(length - blocks * block, None) if reverse else slice(blocks * block)
    a_blocks, x_blocks, h_blocks = (
        z[:, whole].unflatten(1, (blocks, block)).unbind(2)[::direction] for z in (a, x, h)
    )  # `block` tensors (b, m, n) each
    factor, total = a_blocks[0].clone(), x_blocks[0].clone()  # a block maps the entering state to factor * it + total
    for a_t, x_t in zip(a_blocks[1:], x_blocks[1:], strict=True):
        factor.mul_(a_t)
        torch.addcmul(x_t, a_t, total, out=total)
    entering, states = initial, []
    for factor_m, total_m in zip(factor.unbind(1)[::direction], total.unbind(1)[::direction], strict=True):
        states.append(entering)
        entering = torch.addcmul(total_m, factor_m, entering)
    _walk(a_blocks, x_blocks, h_blocks, torch.stack(states[::direction], dim=1))
    rest = slice(length - blocks * block) if reverse else slice(blocks * block, None)
    a_rest, x_rest, h_rest = (z[:, rest].unbind(1)[::direction] for z in (a, x, h))
    _walk(a_rest, x_rest, h_rest, entering)
    return h


def _walk(a: tuple[Tensor, ...], x: tuple[Tensor, ...], h: tuple[Tensor, ...], state: Tensor) -> None:
    """Write the states of the recurrence, from `state` on, into `h`."""
    for a_t, x_t, h_t in zip(a, x, h, strict=True):
        if torch.compiler.is_compiling():  # which cannot trace a result that is written into a view
            state = h_t.copy_(torch.addcmul(x_t, a_t, state))
        else:
            state = torch.addcmul(x_t, a_t, state, out=h_t)
