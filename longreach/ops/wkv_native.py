"""WKV and its adjoint by compiled kernels (csrc/wkv.cpp), as operators of torch.

One pass over key and value, and one over them and the gradient, two exponentials a position each.  Besides the results
every BLOCK-th state is kept for the adjoint, which computes the others again.  Second derivatives run on torch.

Axes: b batch, l length, c channels, m blocks but the first.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longreach.ops.backend import OPS
from longreach.ops.gradients import gradients_by_autograd
from longreach.ops.native import LIBRARY, address, dtype_name, kernel
from longreach.ops.wkv_state import WKVState

DTYPES = (torch.float32, torch.float64)
BLOCK = 64
"""Positions between the states that are kept, as in csrc/wkv.cpp."""
ARGUMENTS = (
    "Tensor log_decay, Tensor bonus, Tensor key, Tensor value, Tensor numerator, Tensor denominator, Tensor exponent, "
    "Tensor? mask"
)

LIBRARY.define(f"wkv({ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
LIBRARY.define(
    f"wkv_adjoint(Tensor grad, Tensor grad_numerator, Tensor grad_denominator, Tensor kept, {ARGUMENTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def native_wkv(
    log_decay: Float[Tensor, " c"],
    bonus: Float[Tensor, " c"],
    key: Float[Tensor, "b l c"],
    value: Float[Tensor, "b l c"],
    state: WKVState,
    mask: Bool[Tensor, "b l"] | None,
) -> tuple[Float[Tensor, "b l c"], WKVState]:
    """The averages, zero where `mask` is False, and the state; all arguments have one of DTYPES and are on the CPU."""
    y, *after, _ = torch.ops.longreach.wkv(log_decay, bonus, key, value, *state, mask)
    return y, WKVState(*after)


def _call(name: str, given: Sequence[Any], others: Sequence[Tensor], key: Tensor) -> None:
    """Run a kernel on contiguous tensors."""
    pointers = [(ctypes.c_void_p * len(tensors))(*map(address, tensors)) for tensors in (given, others)]
    run = kernel(f"{name}_{dtype_name(key.dtype)}", n_pointers=3, n_sizes=0)
    run(*pointers, (ctypes.c_int64 * 3)(*key.shape), torch.get_num_threads())


def _dense(*tensors: Any) -> list[Any]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _results(key: Tensor, numerator: Tensor) -> tuple[Tensor, ...]:
    """Room for the averages, the state, and the states between blocks."""
    batch, length, channels = key.shape
    state = (torch.empty_like(numerator, memory_format=torch.contiguous_format) for _ in range(3))
    kept = key.new_empty(batch, (length - 1) // BLOCK, 3, channels)
    return torch.empty_like(key, memory_format=torch.contiguous_format), *state, kept


def _gradients(key: Tensor, numerator: Tensor) -> tuple[Tensor, ...]:
    """Room for the gradients of all arguments but exponent and mask; of the parameters one for each row."""
    like = (numerator, numerator, key, key, numerator, numerator)
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in like)


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    given = _dense(*arguments)
    found = _results(given[2], given[4])
    _call("wkv", given, found, given[2])
    return found


def _adjoint(
    grad: Tensor, grad_numerator: Tensor, grad_denominator: Tensor, kept: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    given = _dense(*arguments)
    found = _gradients(given[2], given[4])
    _call("wkv_adjoint", given, [*_dense(grad, grad_numerator, grad_denominator, kept), *found], given[2])
    return found[0].sum(0), found[1].sum(0), *found[2:]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[3], output[4])
    ctx.save_for_backward(*inputs, output[4])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    *arguments, kept = ctx.saved_tensors
    if torch.is_grad_enabled():
        found = _adjoint_on_torch(grads[:3], arguments, ctx.needs_input_grad)
    else:
        found = torch.ops.longreach.wkv_adjoint(*grads[:3], kept, *arguments)
    return *found, None, None


def _adjoint_on_torch(grads: Sequence[Tensor], arguments: Sequence[Any], needed: Sequence[bool]) -> list[Tensor | None]:
    """The same with derivatives of its own."""
    *differentiable, exponent, mask = arguments

    def scan(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        *signals, numerator, denominator = inputs
        y, after = OPS["wkv"].backends["scan"](*signals, WKVState(numerator, denominator, exponent.detach()), mask)
        y = y if mask is None else y.masked_fill(~mask[..., None], 0)
        return y, after.numerator, after.denominator

    return gradients_by_autograd(scan, differentiable, needed[: len(differentiable)], grads)


LIBRARY.impl("wkv", _forward, "CPU")
LIBRARY.impl("wkv_adjoint", _adjoint, "CPU")


@torch.library.register_fake("longreach::wkv")
def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    return _results(arguments[2], arguments[4])


@torch.library.register_fake("longreach::wkv_adjoint")
def _fake_adjoint(
    grad: Tensor, grad_numerator: Tensor, grad_denominator: Tensor, kept: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    found = _gradients(arguments[2], arguments[4])
    return *(torch.empty_like(x) for x in arguments[:2]), *found[2:]


torch.library.register_autograd("longreach::wkv", _backward, setup_context=_save)
