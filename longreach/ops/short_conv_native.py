"""The short convolution and its adjoint by compiled kernels (csrc/short_conv.cpp), as operators of torch.

    short_conv            y = short_conv(x, weight, bias, tail), as longreach.ops.short_conv defines it
    short_conv_adjoint    what `grad`, the gradient of y, gives for those of its four arguments that are `needed`

One pass over the input, and one over input and gradient; nothing is allocated but the results, which lie as the input
does: positions or channels side by side.  Second derivatives run on torch.

Axes: b batch, d channels, l length, k taps.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from longreach.ops.backend import OPS
from longreach.ops.gradients import gradients_by_autograd
from longreach.ops.native import LIBRARY, address, dtype_name, kernel
from longreach.ops.transposed import transposed

DTYPES = (torch.float32, torch.float64)
ARGUMENTS = "Tensor x, Tensor weight, Tensor? bias, Tensor? tail"
MIN_CHANNELS = 16
"""With fewer side by side they do not fill a vector."""


def native_short_conv(
    x: Float[Tensor, "b d l"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None,
    tail: Float[Tensor, "b d _"] | None,
) -> Float[Tensor, "b d l"]:
    """What longreach.ops.short_conv defines, for tensors on the CPU which have one of DTYPES in common."""
    return torch.ops.longreach.short_conv(x, weight, bias, tail)


def channels_last(x: Float[Tensor, "b d l"]) -> bool:
    """Whether channels lie side by side, and not positions, as in a module's (b, l, d)."""
    return bool(x.stride(1) == 1 and x.stride(2) != 1 and x.shape[1] >= MIN_CHANNELS and x.shape[2] > 1)


def empty_like(x: Float[Tensor, "b d l"]) -> Float[Tensor, "b d l"]:
    """Dense, with the same axis innermost."""
    if not channels_last(x):
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    return torch.empty_like(x.mT, memory_format=torch.contiguous_format).mT


def laid_out(x: Float[Tensor, "b d l"], last: bool) -> Float[Tensor, "b d l"]:
    """`x` dense, with the channels (`last`) or the positions innermost."""
    if last:
        return x if x.mT.is_contiguous() else transposed(x).mT
    return x if x.is_contiguous() else transposed(x.mT)


def _prepared(x: Tensor, *others: Tensor | None) -> tuple[Tensor, list[Tensor | None], ctypes.Array]:
    """The tensors as the kernels need them, and the sizes."""
    x = x if channels_last(x) or x.stride(2) == 1 else transposed(x.mT)
    dense = [None if other is None else other.contiguous() for other in others]
    weight = dense[0]
    assert weight is not None
    sizes = (*x.shape, weight.shape[1], *x.stride()[:2], x.stride(2) if channels_last(x) else 1)
    return x, dense, (ctypes.c_int64 * len(sizes))(*sizes)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None) -> Tensor:
    x, others, sizes = _prepared(x, weight, bias, tail)
    y = empty_like(x)
    run = kernel(f"short_conv_{dtype_name(x.dtype)}", n_pointers=6, n_sizes=0)
    run(*(address(tensor) for tensor in (x, *others)), sizes, address(y), torch.get_num_threads())
    return y


def _adjoint(grad: Tensor, needed: Sequence[bool], *tensors: Any) -> list[Tensor]:
    x, others, sizes = _prepared(*tensors)
    grad = laid_out(grad, channels_last(x))
    found = empty_results((x, *others), needed)
    run = kernel(f"short_conv_adjoint_{dtype_name(x.dtype)}", n_pointers=10, n_sizes=0)
    addresses = [address(tensor) for tensor in (x, *others)], [address(tensor) for tensor in (grad, *found)]
    run(*addresses[0], sizes, *addresses[1], torch.get_num_threads())
    return [tensor for tensor in found if tensor is not None]


def empty_results(
    tensors: Sequence[Float[Tensor, "..."] | None], needed: Sequence[bool]
) -> list[Float[Tensor, "..."] | None]:
    """For the gradients that are needed; that of the signal, the first, lies as it does."""
    return [
        (torch.empty_like(tensor, memory_format=torch.contiguous_format) if i else empty_like(tensor))
        if wanted and tensor is not None
        else None
        for i, (tensor, wanted) in enumerate(zip(tensors, needed, strict=True))
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(name: str, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors, needed = ctx.saved_tensors, list(ctx.needs_input_grad)
    if torch.is_grad_enabled():
        return tuple(gradients_by_autograd(OPS["short_conv"].backends["reference"], tensors, needed, grad))
    found = iter(getattr(torch.ops.longreach, f"{name}_adjoint")(grad, needed, *tensors))
    return tuple(next(found) if need else None for need in needed)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None) -> Tensor:
    return empty_like(x)


def _fake_adjoint(grad: Tensor, needed: Sequence[bool], *tensors: Any) -> list[Tensor]:
    return [tensor for tensor in empty_results(tensors, needed) if tensor is not None]


def define_short_conv(name: str) -> None:
    """Tell torch of operators `name` and `name`_adjoint, their shapes and derivatives; kernels are attached later."""
    LIBRARY.define(f"{name}({ARGUMENTS}) -> Tensor")
    LIBRARY.define(f"{name}_adjoint(Tensor grad, bool[] needed, {ARGUMENTS}) -> Tensor[]")
    torch.library.register_fake(f"longreach::{name}", _fake)
    torch.library.register_fake(f"longreach::{name}_adjoint", _fake_adjoint)
    torch.library.register_autograd(f"longreach::{name}", functools.partial(_backward, name), setup_context=_save)


define_short_conv("short_conv")
LIBRARY.impl("short_conv", _forward, "CPU")
LIBRARY.impl("short_conv_adjoint", _adjoint, "CPU")
