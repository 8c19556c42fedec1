"""Damped averages and their adjoint by compiled kernels (csrc/damped_average.cpp), as operators of torch.

Time O(b l d n); besides the results the averages of every BLOCK-th position are kept for the adjoint, n / BLOCK numbers
for each of x.  Second derivatives run on torch.

Axes: b batch, l length, d channels, n averages of a channel, r directions.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from longreach.ops.backend import OPS
from longreach.ops.gradients import gradients_by_autograd
from longreach.ops.native import LIBRARY, address, dtype_name, kernel

DTYPES = (torch.float32, torch.float64)
BLOCK, GROUP = 128, 4
"""Positions between the states that are kept, and what the number of averages is a multiple of, as in the kernel."""
ARGUMENTS = "Tensor x, Tensor weight, Tensor forgotten, Tensor skip"

LIBRARY.define(f"damped_average({ARGUMENTS}) -> (Tensor, Tensor)")
LIBRARY.define(f"damped_average_adjoint(Tensor grad, Tensor kept, {ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)")


def native_damped_average(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "r d n"],
    forgotten: Float[Tensor, "r d n"],
    skip: Float[Tensor, " d"],
) -> Float[Tensor, "b l d"]:
    """What longreach.ops.damped_average defines, for tensors on the CPU which have one of DTYPES in common."""
    return torch.ops.longreach.damped_average(x, weight, forgotten, skip)[0]


def _prepared(x: Tensor, weight: Tensor, forgotten: Tensor, skip: Tensor) -> list[Tensor]:
    """All contiguous; the coefficients (r, n, d), with averages that have no weight added to fill the last group."""
    missing = -weight.shape[-1] % GROUP
    coefficients = (pad(z, (0, missing)).mT.contiguous() for z in (weight, forgotten))
    return [x.contiguous(), *coefficients, skip.contiguous()]


def _call(name: str, given: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    x, weight, *_ = given
    pointers = [(ctypes.c_void_p * len(tensors))(*map(address, tensors)) for tensors in (given, others)]
    sizes = (ctypes.c_int64 * 5)(*x.shape, weight.shape[1], weight.shape[0])
    run = kernel(f"{name}_{dtype_name(x.dtype)}", n_pointers=3, n_sizes=0)
    run(*pointers, sizes, torch.get_num_threads())


def _results(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Room for y, and for the averages between blocks."""
    batch, length, channels = x.shape
    averages = -(-weight.shape[-1] // GROUP) * GROUP
    kept = x.new_empty(batch, weight.shape[0], (length - 1) // BLOCK, averages, channels)
    return torch.empty_like(x, memory_format=torch.contiguous_format), kept


def _forward(x: Tensor, weight: Tensor, forgotten: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    found = _results(x, weight)
    _call("damped_average", _prepared(x, weight, forgotten, skip), found)
    return found


def _adjoint(
    grad: Tensor, kept: Tensor, x: Tensor, weight: Tensor, forgotten: Tensor, skip: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = _prepared(x, weight, forgotten, skip)
    like = (given[0], *(z.new_empty(len(x), *z.shape) for z in given[1:]))
    found = [torch.empty_like(z) for z in like]
    _call("damped_average_adjoint", given, [grad.contiguous(), kept, *found])
    of_weight, of_forgotten = (z.sum(0).mT[..., : weight.shape[-1]].contiguous() for z in found[1:3])
    return found[0], of_weight, of_forgotten, found[3].sum(0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *arguments, kept = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return torch.ops.longreach.damped_average_adjoint(grad, kept, *arguments)
    convolution = OPS["damped_average"].backends["convolution"]
    return tuple(gradients_by_autograd(convolution, arguments, ctx.needs_input_grad, grad))


LIBRARY.impl("damped_average", _forward, "CPU")
LIBRARY.impl("damped_average_adjoint", _adjoint, "CPU")


@torch.library.register_fake("longreach::damped_average")
def _fake(x: Tensor, weight: Tensor, forgotten: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    return _results(x, weight)


@torch.library.register_fake("longreach::damped_average_adjoint")
def _fake_adjoint(grad: Tensor, kept: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in arguments)


torch.library.register_autograd("longreach::damped_average", _backward, setup_context=_save)
