"""Sums of exponentials and their adjoint by compiled kernels (csrc/vandermonde.cpp), as operators of torch.

    sums      y_l = 2 Re sum_n c_n z_n^l
    moments   m_n = sum_l u_l z_n^l,  d_n = sum_l l u_l z_n^l         l counts from the end with `reverse`

Each is the derivative of the other.  Powers are computed in float64; time O(b d n l), memory O(n sqrt(l)) a thread
besides the results.  Second derivatives run on torch.

Axes: b rows, d channels, n modes, l length.
"""

import functools
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from longreach.ops.backend import OPS
from longreach.ops.gradients import gradients_by_autograd
from longreach.ops.native import LIBRARY, address, dtype_name, kernel

DTYPES = (torch.complex64, torch.complex128)


def native_sums(
    coefficient: Complex[Tensor, "... d n"], log_ratio: Complex[Tensor, "#d n"], length: int
) -> Float[Tensor, "... d {length}"]:
    """The sums of every row; both arguments have one of DTYPES and are on the CPU.

    Modes that all channels share are those of one channel, of which there are more rows.
    """
    y = torch.ops.longreach.vandermonde(coefficient.reshape(-1, *log_ratio.shape), log_ratio, length)
    return y.view(*coefficient.shape[:-1], length)


def native_adjoint(u: Float[Tensor, "... d l"], log_ratio: Complex[Tensor, "#d n"]) -> Complex[Tensor, "... d n"]:
    """s_n = sum_l z_n^(L-1-l) u_l for every row; `u` has the real dtype of `log_ratio`."""
    rows = u.reshape(-1, log_ratio.shape[0], u.shape[-1])
    moments, _ = torch.ops.longreach.vandermonde_moments(rows, log_ratio, True)
    return moments.view(*u.shape[:-1], log_ratio.shape[-1])


def _dense(x: Tensor) -> Tensor:
    return x.resolve_conj().contiguous()


def _sums(coefficient: Tensor, log_ratio: Tensor, length: int) -> Tensor:
    coefficient, log_ratio = _dense(coefficient), _dense(log_ratio)
    y = torch.empty(*coefficient.shape[:2], length, dtype=coefficient.real.dtype)
    run = kernel(f"vandermonde_{dtype_name(y.dtype)}", n_pointers=3, n_sizes=4)
    run(address(coefficient), address(log_ratio), address(y), *coefficient.shape, length, torch.get_num_threads())
    return y


def _moments(u: Tensor, log_ratio: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    u, log_ratio = _dense(u), _dense(log_ratio)
    moments = torch.empty(*u.shape[:2], log_ratio.shape[1], dtype=log_ratio.dtype)
    derivative = torch.empty_like(moments)
    run = kernel(f"vandermonde_moments_{dtype_name(u.dtype)}", n_pointers=4, n_sizes=4, n_ints=2)
    tensors = (u, log_ratio, moments, derivative)
    run(*(address(x) for x in tensors), *moments.shape, u.shape[2], reverse, torch.get_num_threads())
    return moments, derivative


def _save_sums(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    coefficient, log_ratio, ctx.length = inputs
    ctx.save_for_backward(coefficient, log_ratio)


def _sums_backward(name: str, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    coefficient, log_ratio = ctx.saved_tensors
    if torch.is_grad_enabled():
        blocked = OPS["vandermonde"].backends["blocked"]
        return tuple(gradients_by_autograd(blocked, (coefficient, log_ratio, ctx.length), ctx.needs_input_grad, grad))
    moments, derivative = getattr(torch.ops.longreach, f"{name}_moments")(grad, log_ratio, False)
    return 2 * moments.conj(), 2 * (coefficient * derivative).sum(0).conj(), None


def _save_moments(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    u, log_ratio, ctx.reverse = inputs
    ctx.save_for_backward(u, log_ratio, output[1])
    ctx.mark_non_differentiable(output[1])


def _moments_backward(name: str, ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    u, log_ratio, derivative = ctx.saved_tensors
    if torch.is_grad_enabled():
        blocked, (*needed, _) = OPS["vandermonde_adjoint"].backends["blocked"], ctx.needs_input_grad
        signal = u if ctx.reverse else u.flip(-1)
        grad_u, grad_ratio = gradients_by_autograd(blocked, (signal, log_ratio), needed, grad)
        return grad_u if ctx.reverse or grad_u is None else grad_u.flip(-1), grad_ratio, None
    grad_u = getattr(torch.ops.longreach, name)(0.5 * grad.conj(), log_ratio, u.shape[-1])
    return grad_u.flip(-1) if ctx.reverse else grad_u, (grad * derivative.conj()).sum(0), None


def _fake_sums(coefficient: Tensor, log_ratio: Tensor, length: int) -> Tensor:
    return coefficient.new_empty(*coefficient.shape[:2], length, dtype=coefficient.real.dtype)


def _fake_moments(u: Tensor, log_ratio: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    moments = log_ratio.new_empty(*u.shape[:2], log_ratio.shape[1])
    return moments, torch.empty_like(moments)


def define_vandermonde(name: str) -> None:
    """Tell torch of operators `name` and `name`_moments, their shapes and derivatives; kernels are attached later."""
    moments = f"{name}_moments"
    LIBRARY.define(f"{name}(Tensor coefficient, Tensor log_ratio, int length) -> Tensor")
    LIBRARY.define(f"{moments}(Tensor u, Tensor log_ratio, bool reverse) -> (Tensor, Tensor)")
    torch.library.register_fake(f"longreach::{name}", _fake_sums)
    torch.library.register_fake(f"longreach::{moments}", _fake_moments)
    backward = functools.partial(_sums_backward, name), functools.partial(_moments_backward, name)
    torch.library.register_autograd(f"longreach::{name}", backward[0], setup_context=_save_sums)
    torch.library.register_autograd(f"longreach::{moments}", backward[1], setup_context=_save_moments)


define_vandermonde("vandermonde")
LIBRARY.impl("vandermonde", _sums, "CPU")
LIBRARY.impl("vandermonde_moments", _moments, "CPU")
