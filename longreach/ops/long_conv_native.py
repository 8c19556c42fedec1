"""The long convolution and its adjoint by compiled kernels (csrc/long_conv.cpp), as operators of torch.

They take any length, gates, skip connection and a filter for the future, in one pass over the arguments, whose rows and
channels may lie anywhere.  Memory besides the results: at most four spectra a thread, 8 to 16 bytes a sample each.  The
adjoint is computed from the arguments alone; second derivatives run on torch.

Axes: b batch, d channels, l length, k and k2 numbers of taps.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from longreach.ops.backend import OPS
from longreach.ops.gradients import gradients_by_autograd
from longreach.ops.native import LIBRARY, address, dtype_name, kernel
from longreach.ops.transposed import transposed

DTYPES = (torch.float32, torch.float64)
ARGUMENTS = (
    "Tensor u, Tensor kernel, Tensor? reverse_kernel, Tensor? skip, Tensor? gate_before, Tensor? gate_after, "
    "int reverse_lag"
)
N_TENSORS = 6

LIBRARY.define(f"long_conv({ARGUMENTS}) -> Tensor")
LIBRARY.define(f"long_conv_adjoint(Tensor grad, bool[] needed, {ARGUMENTS}) -> Tensor[]")


def native_long_conv(
    u: Float[Tensor, "b d l"],
    taps: Float[Tensor, "d k"],
    reverse: Float[Tensor, "d k2"] | None,
    skip: Float[Tensor, " d"] | None,
    before: Float[Tensor, "b d l"] | None,
    after: Float[Tensor, "b d l"] | None,
    reverse_lag: int,
) -> Float[Tensor, "b d l"]:
    """What longreach.ops.long_conv defines, for tensors on the CPU which have one of DTYPES in common."""
    return torch.ops.longreach.long_conv(u, taps, reverse, skip, before, after, reverse_lag)


def _forward(*arguments: Any) -> Tensor:
    tensors, lag = _prepared(arguments)
    u = cast(Tensor, tensors[0])
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    run = kernel(f"long_conv_{dtype_name(u.dtype)}", n_pointers=3, n_sizes=0)
    run(_pointers(_inputs(tensors)), _sizes(tensors, lag), address(y), torch.get_num_threads())
    return y


def _adjoint(grad: Tensor, needed: Sequence[bool], *arguments: Any) -> list[Tensor]:
    tensors, lag = _prepared(arguments)
    grad = _along_length(grad)
    found = [
        torch.empty_like(x, memory_format=torch.contiguous_format) if wanted and x is not None else None
        for x, wanted in zip(tensors, needed, strict=True)
    ]
    run = kernel(f"long_conv_adjoint_{dtype_name(grad.dtype)}", n_pointers=4, n_sizes=0)
    sizes = _sizes(tensors, lag, grad)
    run(_pointers(_inputs(tensors)), sizes, address(grad), _pointers(found), torch.get_num_threads())
    return [x for x in found if x is not None]


def _prepared(arguments: tuple[Any, ...]) -> tuple[list[Tensor | None], int]:
    """The tensors as the kernels need them, and the lag."""
    *tensors, lag = arguments
    u, taps, reverse, skip, before, after = tensors
    signals = [None if x is None else _along_length(x) for x in (u, before, after)]
    filters = [None if x is None else x.contiguous() for x in (taps, reverse, skip)]
    return [signals[0], *filters, *signals[1:]], lag


def _along_length(x: Tensor) -> Tensor:
    """`x` with its samples next to each other; rows and channels stay where they are."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else transposed(x.mT)


def _inputs(tensors: list[Tensor | None]) -> list[Tensor | None]:
    """In the order of the kernels."""
    u, taps, reverse, skip, before, after = tensors
    return [taps, reverse, skip, u, before, after]


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors))


def _sizes(tensors: list[Tensor | None], lag: int, grad: Tensor | None = None) -> ctypes.Array:
    u, taps, reverse, _, before, after = tensors
    assert u is not None
    assert taps is not None
    strides = [(0, 0) if x is None else x.stride()[:2] for x in (u, before, after, grad)]
    sizes = [*u.shape, taps.shape[1], 0 if reverse is None else reverse.shape[1], lag, *sum(strides, ())]
    return (ctypes.c_int64 * len(sizes))(*sizes)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.lag = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors, needed = ctx.saved_tensors, list(ctx.needs_input_grad[:N_TENSORS])
    if torch.is_grad_enabled():
        return *_differentiable_adjoint(grad, tensors, needed, ctx.lag), None
    found = iter(torch.ops.longreach.long_conv_adjoint(grad, needed, *tensors, ctx.lag))
    return *(next(found) if wanted else None for wanted in needed), None


def _differentiable_adjoint(grad: Tensor, tensors: Any, needed: list[bool], lag: int) -> list[Tensor | None]:
    """The adjoint as autograd derives it from the convolution on torch."""

    def convolve(u: Tensor, taps: Tensor, *others: Tensor | None) -> Tensor:
        names = "reverse_kernel", "skip", "gate_before", "gate_after"
        return OPS["long_conv"].backends["fft"](u, taps, reverse_lag=lag, **dict(zip(names, others, strict=True)))

    return gradients_by_autograd(convolve, tensors, needed, grad)


LIBRARY.impl("long_conv", _forward, "CPU")
LIBRARY.impl("long_conv_adjoint", _adjoint, "CPU")


@torch.library.register_fake("longreach::long_conv")
def _fake(*arguments: Any) -> Tensor:
    return torch.empty_like(arguments[0], memory_format=torch.contiguous_format)


@torch.library.register_fake("longreach::long_conv_adjoint")
def _fake_adjoint(grad: Tensor, needed: Sequence[bool], *arguments: Any) -> list[Tensor]:
    chosen = [x for x, wanted in zip(arguments[:N_TENSORS], needed, strict=True) if wanted]
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in chosen]


torch.library.register_autograd("longreach::long_conv", _backward, setup_context=_save)
