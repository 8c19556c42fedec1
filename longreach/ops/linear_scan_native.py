"""The linear recurrence and its adjoint by compiled kernels (csrc/linear_scan.cpp), as operators of torch.

    scan      h_t = a_t h_{t-1} + x_t                          from the last position to the first with `reverse`
    adjoint   g_t = grad_t + conj(a_{t+1}) g_{t+1},  grad a_t = g_t conj(h_{t-1}),  grad x_t = g_t

Each reads and writes every array once: time is the speed of memory, and besides its results nothing is allocated.
Second derivatives run the same scan on the formulas above.

Axes: b batch, l length, n channels.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor

from longreach.ops.native import LIBRARY, address, dtype_name, kernel

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def native_scan(
    a: Num[Tensor, "b l n"], x: Num[Tensor, "b l n"], initial: Num[Tensor, "b n"], reverse: bool = False
) -> Num[Tensor, "b l n"]:
    """All states; the arguments have one of DTYPES in common and are on the CPU."""
    return torch.ops.longreach.linear_scan(a, x, initial, reverse)


def _side_by_side(a: Tensor) -> Tensor:
    """`a` with its channels next to each other; expanded axes stay expanded."""
    a = a.resolve_conj()
    return a if a.stride(-1) == 1 or a.shape[-1] == 1 else a.contiguous()


def _dense(x: Tensor) -> Tensor:
    return x.resolve_conj().contiguous()


def _sizes(a: Tensor) -> tuple[int, ...]:
    parts = 2 if a.is_complex() else 1
    return (*a.shape, parts * a.stride(0), parts * a.stride(1))


def _scan(a: Tensor, x: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    a, x, initial = _side_by_side(a), _dense(x), _dense(initial)
    h = torch.empty_like(x)
    run = kernel(f"linear_scan_{dtype_name(x.dtype)}", n_pointers=4, n_sizes=5, n_ints=2)
    run(address(a), address(x), address(initial), address(h), *_sizes(a), reverse, torch.get_num_threads())
    return h


def _adjoint(grad: Tensor, a: Tensor, initial: Tensor, h: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    grad, a, initial, h = _dense(grad), _side_by_side(a), _dense(initial), _dense(h)
    found = torch.empty_like(h), torch.empty_like(h), torch.empty_like(initial)
    run = kernel(f"linear_scan_adjoint_{dtype_name(h.dtype)}", n_pointers=7, n_sizes=5, n_ints=2)
    tensors = (grad, a, initial, h, *found)
    run(*(address(tensor) for tensor in tensors), *_sizes(a), reverse, torch.get_num_threads())
    return found


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, _, initial, ctx.reverse = inputs
    ctx.save_for_backward(a, initial, output)


def _backward(name: str, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, initial, h = ctx.saved_tensors
    if torch.is_grad_enabled():
        scan = getattr(torch.ops.longreach, name)
        return *_adjoint_by_scan(scan, grad, a, initial, h, ctx.reverse), None
    return *getattr(torch.ops.longreach, f"{name}_adjoint")(grad, a, initial, h, ctx.reverse), None


def _adjoint_by_scan(
    scan: Callable[..., Tensor], grad: Tensor, a: Tensor, initial: Tensor, h: Tensor, reverse: bool
) -> tuple[Tensor, ...]:
    """The adjoint by operations that have derivatives themselves."""
    first, last, later, earlier = 0, -1, slice(1, None), slice(None, -1)
    if reverse:
        first, last, later, earlier = last, first, earlier, later
    g = grad[:, last, None]
    if grad.shape[1] > 1:
        rest = scan(a[:, later].conj(), grad[:, earlier], grad[:, last], not reverse)
        g = torch.cat([g, rest] if reverse else [rest, g], dim=1)
    before = torch.cat([h[:, earlier], initial[:, None]] if reverse else [initial[:, None], h[:, earlier]], dim=1)
    return g * before.conj(), g, g[:, first] * a[:, first].conj()


def _fake_scan(a: Tensor, x: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_adjoint(grad: Tensor, a: Tensor, initial: Tensor, h: Tensor, reverse: bool) -> tuple[Tensor, ...]:
    return torch.empty_like(h), torch.empty_like(h), torch.empty_like(initial)


def define_scan(name: str) -> None:
    """Tell torch of operators `name` and `name`_adjoint, their shapes and derivatives; kernels are attached later."""
    adjoint = f"{name}_adjoint"
    LIBRARY.define(f"{name}(Tensor a, Tensor x, Tensor initial, bool reverse) -> Tensor")
    LIBRARY.define(
        f"{adjoint}(Tensor grad, Tensor a, Tensor initial, Tensor h, bool reverse) -> (Tensor, Tensor, Tensor)"
    )
    torch.library.register_fake(f"longreach::{name}", _fake_scan)
    torch.library.register_fake(f"longreach::{adjoint}", _fake_adjoint)
    torch.library.register_autograd(f"longreach::{name}", functools.partial(_backward, name), setup_context=_save)


define_scan("linear_scan")
LIBRARY.impl("linear_scan", _scan, "CPU")
LIBRARY.impl("linear_scan_adjoint", _adjoint, "CPU")
