"""Sums of simple poles and their adjoint by compiled kernels (csrc/cauchy.cpp), as operators of torch.

    cauchy            r_k = sum_n v_n / (z_k - w_n) + conj(v_n) / (z_k - conj(w_n))
    cauchy_adjoint    what `grad`, the gradient of r, gives for v and w; the points are constants

Time O(rows d n k).  Both keep nothing but their arguments and results; rows of coefficients share what is computed for
their poles.  Second derivatives run on torch.

Axes: `rows` of coefficients that share the poles, d channels, n poles, k points.
"""

import functools
from typing import Any

import torch
from jaxtyping import Complex
from torch import Tensor

from longreach.ops.backend import OPS
from longreach.ops.gradients import gradients_by_autograd
from longreach.ops.native import LIBRARY, address, dtype_name, kernel

DTYPES = (torch.complex64, torch.complex128)


def native_cauchy(
    v: Complex[Tensor, "... d n"], z: Complex[Tensor, " k"], w: Complex[Tensor, "d n"]
) -> Complex[Tensor, "... d k"]:
    """The sums of every row; the arguments have one of DTYPES in common and are on the CPU."""
    r = torch.ops.longreach.cauchy(v.reshape(-1, *w.shape), z, w)
    return r.view(*v.shape[:-1], len(z))


def _dense(x: Tensor) -> Tensor:
    return x.resolve_conj().contiguous()


def _sums(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    v, z, w = _dense(v), _dense(z), _dense(w)
    r = v.new_empty(*v.shape[:2], len(z))
    run = kernel(f"cauchy_{dtype_name(v.dtype)}", n_pointers=4, n_sizes=4)
    run(*(address(x) for x in (v, z, w, r)), *v.shape, len(z), torch.get_num_threads())
    return r


def _adjoint(grad: Tensor, v: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    tensors = [_dense(x) for x in (grad, v, z, w)]
    found = torch.empty_like(tensors[1]), torch.empty_like(tensors[3])
    run = kernel(f"cauchy_adjoint_{dtype_name(v.dtype)}", n_pointers=6, n_sizes=4)
    run(*(address(x) for x in (*tensors, *found)), *v.shape, len(z), torch.get_num_threads())
    return found


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(name: str, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    v, z, w = ctx.saved_tensors
    if torch.is_grad_enabled():
        return tuple(gradients_by_autograd(OPS["cauchy"].backends["blocked"], (v, z, w), ctx.needs_input_grad, grad))
    grad_v, grad_w = getattr(torch.ops.longreach, f"{name}_adjoint")(grad, v, z, w)
    return grad_v, None, grad_w


def _fake_sums(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    return v.new_empty(*v.shape[:2], len(z))


def _fake_adjoint(grad: Tensor, v: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), w.new_empty(w.shape)


def define_cauchy(name: str) -> None:
    """Tell torch of operators `name` and `name`_adjoint, their shapes and derivatives; kernels are attached later."""
    LIBRARY.define(f"{name}(Tensor v, Tensor z, Tensor w) -> Tensor")
    LIBRARY.define(f"{name}_adjoint(Tensor grad, Tensor v, Tensor z, Tensor w) -> (Tensor, Tensor)")
    torch.library.register_fake(f"longreach::{name}", _fake_sums)
    torch.library.register_fake(f"longreach::{name}_adjoint", _fake_adjoint)
    torch.library.register_autograd(f"longreach::{name}", functools.partial(_backward, name), setup_context=_save)


define_cauchy("cauchy")
LIBRARY.impl("cauchy", _sums, "CPU")
LIBRARY.impl("cauchy_adjoint", _adjoint, "CPU")
