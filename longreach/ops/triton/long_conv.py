"""The long convolution on a GPU: FlashFFTConv (https://arxiv.org/abs/2311.05908) by right-angle transforms, in Triton.

Lengths are padded to N, a power of two from 256 on, by masks.  Up to WHOLE a program holds whole rows and does all that
is to be done between reading and writing: gates, transform, filter, inverse.  Longer ones have one or two outer levels
(Monarch products of order 3 and 4) around rows of at most 4096, in a workspace small enough to stay in the second-level
cache.  The adjoint transforms its inputs again; kept for it are the inputs and the filters' spectrum.

    conv(v, f) = Re F^-1(K F v),      K = F f_0 + conj(F f_1),      f_0 causal with the skip in it, f_1 looks ahead

Floor in bytes: u and the gates once, y once.  Operations of order 2: 6 N (N1 + N2) multiplications a row and pass.

Axes: b batch, d channels, l length, f filters (1, or 2 with one that looks ahead), N padded length.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from longreach.ops.native import LIBRARY
from longreach.ops.triton.long_conv_launches import (
    adjoint_rows,
    convolve_rows,
    enter,
    leave,
    shared_layout,
    spectrum_of_rows,
    tile,
)
from longreach.ops.triton.long_conv_plan import Plan, make_plan, precision

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WORKSPACE = 32 << 20
"""Bytes that the outer levels work on at a time; the second-level cache of the Hopper generation holds 50 MB."""
PROGRAMS = 264
"""As many as the adjoint should have at least, two for every multiprocessor; more channels than that: one for each."""

ARGUMENTS = "Tensor u, Tensor filters, Tensor? skip, Tensor? gate_before, Tensor? gate_after"
LIBRARY.define(f"long_conv_triton({ARGUMENTS}) -> (Tensor, Tensor)")
LIBRARY.define(
    "long_conv_triton_adjoint(Tensor grad, Tensor spectrum, Tensor u, Tensor? gate_before, Tensor? gate_after, "
    "int n_filters, bool[] needed) -> Tensor[]"
)


def triton_long_conv(
    u: Float[Tensor, "b d l"],
    filters: Float[Tensor, "f d l"],
    skip: Float[Tensor, " d"] | None,
    before: Float[Tensor, "b d l"] | None,
    after: Float[Tensor, "b d l"] | None,
) -> Float[Tensor, "b d l"]:
    """gate_after * (sum_j (filters[0]_j v_{t-j} + filters[1]_j v_{t+j}) + skip v_t), v = gate_before * u.

    Filters and skip are in float32.  Time O(b d l sqrt(l)) on tensor cores up to WHOLE, then with higher roots.
    Memory: the filters' spectrum, 8 bytes N d, kept for the adjoint, and WORKSPACE.
    """
    return torch.ops.longreach.long_conv_triton(u, filters, skip, before, after)[0]


def _groups(plan: Plan, u: Tensor) -> list[slice]:
    """Channels that the workspace takes at a time; all, where there is none."""
    step = u.shape[1]
    if plan.outer:
        row = 2 * plan.size * 4
        step = max(1, WORKSPACE // (row * u.shape[0]))
    return [slice(start, start + step) for start in range(0, u.shape[1], step)]


def _part(x: Tensor | None, channels: slice) -> Tensor | None:
    return None if x is None else x[:, channels]


def _spectrum(plan: Plan, filters: Tensor, skip: Tensor | None, groups: list[slice]) -> Tensor:
    """(d, 2, N), in which every group has two planes of its own; divided by N, for what comes back."""
    if skip is not None:  # the tap at lag 0
        filters = filters.clone(memory_format=torch.contiguous_format)
        filters[0, :, 0] += skip
    filters = filters.contiguous()
    out = torch.empty(filters.shape[1], 2, plan.size, device=filters.device)
    for group in groups:
        part = filters[:, group]
        rows = enter(plan, part, None, None, precision(torch.float32, plan)) if plan.outer else part
        spectrum_of_rows(plan, rows, out[group], 1.0 / plan.size, real=not plan.outer)
    return out


def _forward(
    u: Tensor, filters: Tensor, skip: Tensor | None, before: Tensor | None, after: Tensor | None
) -> tuple[Tensor, Tensor]:
    plan = make_plan(u.shape[-1])
    rounding = precision(u.dtype, plan)
    u, (before, after) = shared_layout(u, before, after)
    groups = _groups(plan, u)
    spectrum = _spectrum(plan, filters, skip, groups)
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    for group in groups:
        if plan.outer:
            z = enter(plan, u[:, group], _part(before, group), None, rounding)
            convolve_rows(plan, (z, None, None, z), spectrum[group], rounding, real=False)
            leave(plan, z, (y[:, group], _part(after, group), None, None), u[:, group], rounding)
        else:
            convolve_rows(plan, (u, before, after, y), spectrum, rounding, real=True)
    return y, spectrum


def _adjoint(
    grad: Tensor,
    spectrum: Tensor,
    u: Tensor,
    before: Tensor | None,
    after: Tensor | None,
    n_filters: int,
    needed: Sequence[bool],
) -> list[Tensor]:
    plan = make_plan(u.shape[-1])
    rounding = precision(u.dtype, plan)
    u, (before, after) = shared_layout(u, before, after)
    grad, _ = shared_layout(grad.contiguous())
    grad_u, grad_before, grad_after = (
        None if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (u, before if needed[3] else None, after if needed[4] else None)
    )
    parts = 1 if plan.outer else min(-(-u.shape[0] // tile(plan, u.shape[0])["ROWS"]), -(-PROGRAMS // u.shape[1]))
    filters = torch.empty(parts * n_filters, *u.shape[1:], device=u.device) if needed[1] else None
    skip = torch.empty(parts, u.shape[1], device=u.device) if needed[2] else None
    others = (before, after, grad_u, grad_before, grad_after, filters, skip)
    for group in _groups(plan, u):
        if plan.outer:
            rest = [_part(x, group) for x in others]
            _adjoint_by_levels(plan, grad[:, group], u[:, group], rest, spectrum[group], rounding)
        else:
            adjoint_rows(plan, (grad, u, *others), spectrum, rounding, parts, n_filters)
    if filters is not None:
        filters = filters.unflatten(0, (parts, n_filters)).sum(0)
    found = (grad_u, filters, None if skip is None else skip.sum(0), grad_before, grad_after)
    return [x for x, wanted in zip(found, needed, strict=True) if wanted and x is not None]


def _adjoint_by_levels(
    plan: Plan, grad: Tensor, u: Tensor, others: list[Tensor | None], spectrum: Tensor, rounding: str
) -> None:
    """The same of some channels, whose rows are longer than a program holds."""
    before, after, grad_u, grad_before, grad_after, filters, skip = others
    if skip is not None:
        product = grad.float() * u
        for gate in (before, after):
            product = product if gate is None else product * gate
        skip.copy_(product.sum((0, 2))[None])
    z_v = enter(plan, u, before, None, rounding)
    z_g = enter(plan, grad, None, None, rounding) if after is None else enter(plan, after, None, grad, rounding)
    n_filters, z_f = 0, None
    if filters is not None:
        n_filters = filters.shape[0]
        z_f = torch.empty(2, n_filters, *z_v.shape[2:], device=u.device)
    targets = (z_g, None, None if grad_after is None else z_v, z_f)
    adjoint_rows(plan, (z_g, z_v, None, None, *targets, None), spectrum, rounding, 1, n_filters)
    leave(plan, z_g, (grad_u, before, grad_before, u), u, rounding)
    if grad_after is not None:
        leave(plan, z_v, (grad_after, grad, None, None), grad, rounding)
    if filters is not None and z_f is not None:
        leave(plan, z_f, (filters, None, None, None), filters, rounding)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    u, filters, _, before, after = inputs
    ctx.n_filters = filters.shape[0]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], u, before, after)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad)
    if grad is None:
        return None, None, None, None, None
    found = iter(torch.ops.longreach.long_conv_triton_adjoint(grad, *ctx.saved_tensors, ctx.n_filters, needed))
    return tuple(next(found) if wanted else None for wanted in needed)


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("long_conv_triton", _forward, _device)
    LIBRARY.impl("long_conv_triton_adjoint", _adjoint, _device)


@torch.library.register_fake("longreach::long_conv_triton")
def _fake(
    u: Tensor, filters: Tensor, skip: Tensor | None, before: Tensor | None, after: Tensor | None
) -> tuple[Tensor, Tensor]:
    # the padded length is no expression of the length: torch.compile traces anew for another one
    spectrum = u.new_empty(u.shape[1], 2, make_plan(int(u.shape[-1])).size, dtype=torch.float32)
    return torch.empty_like(u, memory_format=torch.contiguous_format), spectrum


@torch.library.register_fake("longreach::long_conv_triton_adjoint")
def _fake_adjoint(
    grad: Tensor,
    spectrum: Tensor,
    u: Tensor,
    before: Tensor | None,
    after: Tensor | None,
    n_filters: int,
    needed: Sequence[bool],
) -> list[Tensor]:
    filters = u.new_empty(n_filters, *u.shape[1:], dtype=torch.float32)
    skip = u.new_empty(u.shape[1], dtype=torch.float32)
    chosen = [
        x for x, wanted in zip((u, filters, skip, before, after), needed, strict=True) if wanted and x is not None
    ]
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in chosen]


torch.library.register_autograd("longreach::long_conv_triton", _backward, setup_context=_save)
