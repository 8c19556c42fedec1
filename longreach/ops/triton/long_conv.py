"""The long convolution on a GPU: FlashFFTConv (https://arxiv.org/abs/2311.05908) by right-angle transforms, in Triton.

Lengths are padded to N, a power of two from 256 on, by masks.  Up to WHOLE a program holds whole rows and does everything
between reading the input and writing the result: gates, transform, filter, inverse.  Longer ones have one or two outer
levels (Monarch products of order 3 and 4) around rows of at most 4096, in a workspace that is small enough to stay in the
second-level cache.  The adjoint transforms its inputs again; kept for it are the inputs and the filters' spectrum.

    conv(v, f) = Re F^-1(K F v),      K = F f_0 + conj(F f_1),      f_0 causal with the skip in it, f_1 looks ahead

Floor: reads u and gates once, writes y once; 12 (log2 N)-free products of N sqrt(N) multiplications for order 2.

Axes: b batch, d channels, l length, f filters (1, or 2 with one that looks ahead), N padded length.
"""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from longreach.ops.native import LIBRARY
from longreach.ops.triton.long_conv_plan import TILE, Plan, inner_tables, level_tables, make_plan

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

    Filters and skip are in float32.  Time O(b d l sqrt(l)) on tensor cores up to WHOLE, and so on with higher roots.  Memory: the filters' spectrum,
    8 bytes N d, kept for the adjoint, and WORKSPACE.
    """
    return torch.ops.longreach.long_conv_triton(u, filters, skip, before, after)[0]


def _kernels() -> ModuleType:
    """They import Triton, so not before they are needed."""
    from longreach.ops.triton import long_conv_kernels

    return long_conv_kernels


def _levels() -> ModuleType:
    from longreach.ops.triton import long_conv_levels

    return long_conv_levels


def _precision(dtype: torch.dtype) -> str:
    """float16 is multiplied as tf32, which has as many digits, as its range does not hold the spectra of its numbers."""
    return {torch.bfloat16: "bf16", torch.float16: "tf32", torch.float32: "tf32x3"}[dtype]


def _workspace_dtype(precision: str) -> torch.dtype:
    """What is multiplied in bfloat16 next loses nothing if it is stored so."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _unit(*sizes: int) -> int:
    """What is certain to divide them all."""
    return 8 if all(size % 8 == 0 for size in sizes) else 1


def _layout(u: Tensor, *others: Tensor | None) -> list[Tensor | None]:
    """Signals with the same strides, samples side by side, at addresses that 16 divides."""
    signals = (u, *others)
    given = [x for x in signals if x is not None]
    same = all(x.stride() == u.stride() for x in given) and (u.stride(-1) == 1 or u.shape[-1] == 1)
    if same and all(x.data_ptr() % 16 == 0 for x in given):
        return list(signals)
    return [None if x is None else x.clone(memory_format=torch.contiguous_format) for x in signals]


def _inner_sizes(x: Tensor) -> tuple[tuple[int, ...], int]:
    """The sizes of a signal, or of the rows between the levels, for kernels that hold whole rows, and their unit."""
    batch, _, length = x.shape
    sizes = (length, x.stride(0), x.stride(1))
    unit = _unit(*sizes)
    return (batch, *(size // unit for size in sizes)), unit


def _tile(plan: Plan, batch: int) -> dict[str, int]:
    """The constants of kernels that hold whole rows."""
    n1, n2 = plan.inner
    rows = max(TILE // (n1 * n2), 1) if batch > 1 else 1
    return {"N1": n1, "N2": n2, "ROWS": rows, "num_warps": 8 if n1 * n2 * rows >= TILE else 4}


def _spectrum_of_rows(plan: Plan, rows: Tensor, out: Tensor, scale: float, *, real: bool) -> None:
    """(f, channels, length) to the spectrum of each channel; complex rows are two planes of that."""
    x = rows if real else rows[0]
    sizes, unit = _inner_sizes(x)
    tables, tile = inner_tables(*plan.inner, int(real), out.device), _tile(plan, 1)
    del tile["ROWS"]
    _kernels().spectrum[(x.shape[1],)](
        (rows, out), tables, scale, *sizes, **tile, UNIT=unit, REAL=real, PRECISION="tf32x3"
    )


def _convolve_rows(plan: Plan, signals: Sequence[Tensor | None], spectrum: Tensor, precision: str, real: bool) -> None:
    """Signals are the source, the gates and the target."""
    source = signals[0]
    assert source is not None
    x = source if real else source[0]
    sizes, unit = _inner_sizes(x)
    tables, tile = inner_tables(*plan.inner, int(real), x.device), _tile(plan, x.shape[0])
    grid = x.shape[1], -(-x.shape[0] // tile["ROWS"])
    constants = {**tile, "UNIT": unit, "REAL": real, "PRECISION": precision}
    _kernels().convolve[grid](tuple(signals), spectrum, tables, *sizes, **constants)


def _adjoint_rows(
    plan: Plan, signals: Sequence[Tensor | None], spectrum: Tensor, precision: str, parts: int, n_filters: int
) -> None:
    """Signals are grad, u, gates, their gradients and the correlation with `parts` rows for each filter."""
    u = signals[1]
    assert u is not None
    real = not plan.outer
    x = u if real else u[0]
    sizes, unit = _inner_sizes(x)
    tables, tile = inner_tables(*plan.inner, int(real), x.device), _tile(plan, x.shape[0])
    scale = 1.0 / plan.size
    constants = {**tile, "UNIT": unit, "REAL": real, "TWO_SIDED": n_filters == 2, "PRECISION": precision}
    _kernels().adjoint[(x.shape[1], parts)](tuple(signals), spectrum, tables, scale, *sizes, **constants)


def _enter(plan: Plan, source: Tensor, gate: Tensor | None, contiguous: Tensor | None, precision: str) -> Tensor:
    """The product of the signals after all outer levels: two planes of (b, d times the outer sizes, M)."""
    batch, channels, _ = source.shape
    dtype = _workspace_dtype(precision)
    z = torch.empty(2, batch, channels, plan.size, dtype=dtype, device=source.device)
    for level in range(len(plan.outer)):
        signals = (source, gate, contiguous, z) if level == 0 else (None, None, None, z)
        _launch_level(_levels().enter, plan, level, signals, (source, contiguous), z, precision)
    return z.view(2, batch, channels * math.prod(plan.outer), -1)


def _leave(plan: Plan, z: Tensor, targets: Sequence[Tensor | None], like: Tensor, precision: str) -> None:
    """`targets` are a signal, its factor, another signal and its factor; factors have the strides of `like`."""
    target, factor, other_target, other_factor = targets
    for level in reversed(range(len(plan.outer))):
        signals = (z, target, factor, other_target, other_factor) if level == 0 else (z, None, None, None, None)
        _launch_level(_levels().leave, plan, level, signals, (like, target), z, precision)


def _launch_level(
    kernel: Any, plan: Plan, level: int, signals: tuple, like: tuple[Tensor, Tensor | None], z: Tensor, precision: str
) -> None:
    """One program for each block of columns of each row; sizes of real signals, also of contiguous ones, are as `like`."""
    batch, channels, length = like[0].shape
    size, before = plan.outer[level], math.prod(plan.outer[:level])
    rest = plan.size // (before * size)
    block = min(TILE // size, rest)
    strides = (length, like[0].stride(0), like[0].stride(1), 0 if like[1] is None else like[1].stride(0))
    unit = _unit(*strides)
    sizes = (channels, *(x // unit for x in strides), rest // block, z.numel() // 2)
    tables = level_tables(size, rest, block, int(level == 0), z.device)
    constants = {"L": size, "BLOCK": block, "UNIT": unit, "REAL": level == 0, "PRECISION": precision}
    rows = batch * channels * before
    kernel[(rest // block * rows,)](signals, tables, *sizes, **constants, num_warps=4)


def _groups(plan: Plan, u: Tensor, precision: str) -> list[slice]:
    """Channels that the workspace takes at a time; all, where there is none."""
    step = u.shape[1]
    if plan.outer:
        row = 2 * plan.size * _workspace_dtype(precision).itemsize
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
        rows = _enter(plan, part, None, None, "tf32x3") if plan.outer else part
        _spectrum_of_rows(plan, rows, out[group], 1.0 / plan.size, real=not plan.outer)
    return out


def _forward(
    u: Tensor, filters: Tensor, skip: Tensor | None, before: Tensor | None, after: Tensor | None
) -> tuple[Tensor, Tensor]:
    plan, precision = make_plan(u.shape[-1]), _precision(u.dtype)
    u, before, after = _layout(u, before, after)
    assert u is not None
    groups = _groups(plan, u, precision)
    spectrum = _spectrum(plan, filters, skip, groups)
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    for group in groups:
        signals = [_part(x, group) for x in (u, before, after, y)]
        if plan.outer:
            z = _enter(plan, signals[0], signals[1], None, precision)
            _convolve_rows(plan, (z, None, None, z), spectrum[group], precision, real=False)
            _leave(plan, z, (signals[3], signals[2], None, None), signals[0], precision)
        else:
            _convolve_rows(plan, signals, spectrum, precision, real=True)
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
    plan, precision = make_plan(u.shape[-1]), _precision(u.dtype)
    u, before, after = _layout(u, before, after)
    (grad,) = _layout(grad.contiguous())
    grad_u, grad_before, grad_after = (
        None if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (u, before if needed[3] else None, after if needed[4] else None)
    )
    parts = 1 if plan.outer else min(-(-u.shape[0] // _tile(plan, u.shape[0])["ROWS"]), -(-PROGRAMS // u.shape[1]))
    filters = torch.empty(parts * n_filters, *u.shape[1:], device=u.device) if needed[1] else None
    skip = torch.empty(parts, u.shape[1], device=u.device) if needed[2] else None
    signals = (grad, u, before, after, grad_u, grad_before, grad_after, filters, skip)
    for group in _groups(plan, u, precision):
        if plan.outer:
            _adjoint_by_levels(plan, [_part(x, group) for x in signals], spectrum[group], precision)
        else:
            _adjoint_rows(plan, signals, spectrum, precision, parts, n_filters)
    if filters is not None:
        filters = filters.unflatten(0, (parts, n_filters)).sum(0)
    found = (grad_u, filters, None if skip is None else skip.sum(0), grad_before, grad_after)
    return [x for x, wanted in zip(found, needed, strict=True) if wanted and x is not None]


def _adjoint_by_levels(plan: Plan, signals: list[Tensor | None], spectrum: Tensor, precision: str) -> None:
    """The same of some channels, whose rows are longer than a program holds."""
    grad, u, before, after, grad_u, grad_before, grad_after, filters, skip = signals
    if skip is not None:
        product = math.prod(x.float() for x in (grad, u, before, after) if x is not None)
        skip.copy_(product.sum((0, 2))[None])
    z_v = _enter(plan, u, before, None, precision)
    z_g = _enter(plan, grad, None, None, precision) if after is None else _enter(plan, after, None, grad, precision)
    n_filters, z_f = 0, None
    if filters is not None:
        n_filters = filters.shape[0]
        z_f = torch.empty(2, n_filters, *z_v.shape[2:], device=u.device)
    targets = (z_g, None, None if grad_after is None else z_v, z_f)
    _adjoint_rows(plan, (z_g, z_v, None, None, *targets, None), spectrum, precision, 1, n_filters)
    _leave(plan, z_g, (grad_u, before, grad_before, u), u, precision)
    if grad_after is not None:
        _leave(plan, z_v, (grad_after, grad, None, None), grad, precision)
    if z_f is not None:
        _leave(plan, z_f, (filters, None, None, None), filters, precision)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    u, filters, _, before, after = inputs
    ctx.n_filters = filters.shape[0]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], u, before, after)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
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
    spectrum = u.new_empty(u.shape[1], 2, make_plan(u.shape[-1]).size, dtype=torch.float32)
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
    chosen = [x for x, wanted in zip((u, filters, skip, before, after), needed, strict=True) if wanted and x is not None]
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in chosen]


torch.library.register_autograd("longreach::long_conv_triton", _backward, setup_context=_save)
