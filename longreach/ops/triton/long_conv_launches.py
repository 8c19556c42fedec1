"""Launches of the long convolution's kernels: grids, sizes, constants.

Axes: b batch, d channels, l length, f filters, N padded length, M samples of a row after all outer levels.
"""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from longreach.ops.triton.long_conv_plan import TILE, Plan, inner_tables, level_tables, precision

Signal = Float[Tensor, "b d l"]
Rows = Float[Tensor, "*planes b rows M"]
"""Complex ones have two planes; rows of whole real signals are (b, d, l)."""
Spectrum = Float[Tensor, "d 2 N"]


def _kernels() -> ModuleType:
    """They import Triton, so not before they are needed."""
    from longreach.ops.triton import long_conv_kernels

    return long_conv_kernels


def _levels() -> ModuleType:
    from longreach.ops.triton import long_conv_levels

    return long_conv_levels


def _unit(*sizes: int) -> int:
    """What is certain to divide them all."""
    return 8 if all(size % 8 == 0 for size in sizes) else 1


def shared_layout(u: Signal, *others: Signal | None) -> tuple[Signal, list[Signal | None]]:
    """Signals with the same strides, samples side by side, at addresses that 16 divides."""
    signals = (u, *others)
    given = [x for x in signals if x is not None]
    same = all(x.stride() == u.stride() for x in given) and (u.stride(-1) == 1 or u.shape[-1] == 1)
    if same and all(x.data_ptr() % 16 == 0 for x in given):
        return u, list(others)
    first, *rest = (None if x is None else x.clone(memory_format=torch.contiguous_format) for x in signals)
    assert first is not None
    return first, rest


def _inner_sizes(x: Tensor) -> tuple[tuple[int, ...], int]:
    """The sizes of a signal, or of the rows between the levels, for kernels that hold whole rows, and their unit."""
    batch, _, length = x.shape
    sizes = (length, x.stride(0), x.stride(1))
    unit = _unit(*sizes)
    return (batch, *(size // unit for size in sizes)), unit


def tile(plan: Plan, batch: int) -> dict[str, int]:
    """The constants of kernels that hold whole rows."""
    n1, n2 = plan.inner
    rows = max(TILE // (n1 * n2), 1) if batch > 1 else 1
    return {"N1": n1, "N2": n2, "ROWS": rows, "num_warps": 8 if n1 * n2 * rows >= TILE else 4, "num_stages": 1}


def spectrum_of_rows(plan: Plan, rows: Rows, out: Spectrum, scale: float, *, real: bool) -> None:
    """(f, channels, length) to the spectrum of each channel; complex rows are two planes of that."""
    x = rows if real else rows[0]
    sizes, unit = _inner_sizes(x)
    tables, constants = inner_tables(*plan.inner, int(real), out.device), tile(plan, 1)
    del constants["ROWS"]
    _kernels().spectrum[(x.shape[1],)](
        (rows, out), tables, scale, *sizes, **constants, UNIT=unit, REAL=real, PRECISION=precision(torch.float32, plan)
    )


def convolve_rows(plan: Plan, signals: Sequence[Tensor | None], spectrum: Spectrum, rounding: str, real: bool) -> None:
    """Signals are the source, the gates and the target."""
    source = signals[0]
    assert source is not None
    x = source if real else source[0]
    sizes, unit = _inner_sizes(x)
    tables, constants = inner_tables(*plan.inner, int(real), x.device), tile(plan, x.shape[0])
    grid = x.shape[1], -(-x.shape[0] // constants["ROWS"])
    constants |= {"UNIT": unit, "REAL": real, "PRECISION": rounding}
    _kernels().convolve[grid](tuple(signals), spectrum, tables, *sizes, **constants)


def adjoint_rows(
    plan: Plan, signals: Sequence[Tensor | None], spectrum: Spectrum, rounding: str, parts: int, n_filters: int
) -> None:
    """Signals are grad, u, gates, their gradients and the correlation with `parts` rows for each filter."""
    u = signals[1]
    assert u is not None
    real = not plan.outer
    x = u if real else u[0]
    sizes, unit = _inner_sizes(x)
    tables, constants = inner_tables(*plan.inner, int(real), x.device), tile(plan, x.shape[0])
    scale = 1.0 / plan.size
    constants |= {"UNIT": unit, "REAL": real, "TWO_SIDED": n_filters == 2, "PRECISION": rounding}
    _kernels().adjoint[(x.shape[1], parts)](tuple(signals), spectrum, tables, scale, *sizes, **constants)


def enter(plan: Plan, source: Signal, gate: Signal | None, contiguous: Signal | None, rounding: str) -> Rows:
    """The product of the signals after all outer levels: two planes of (b, d times the outer sizes, M)."""
    batch, channels, _ = source.shape
    z = torch.empty(2, batch, channels, plan.size, device=source.device)
    for level in range(len(plan.outer)):
        signals = (source, gate, contiguous, z) if level == 0 else (None, None, None, z)
        _launch_level(_levels().enter, plan, level, signals, (source, contiguous), z, rounding)
    return z.view(2, batch, channels * math.prod(plan.outer), -1)


def leave(plan: Plan, z: Rows, targets: Sequence[Tensor | None], like: Signal, rounding: str) -> None:
    """`targets` are a signal, its factor, another signal and its factor; factors have the strides of `like`."""
    target, factor, other_target, other_factor = targets
    for level in reversed(range(len(plan.outer))):
        signals = (z, target, factor, other_target, other_factor) if level == 0 else (z, None, None, None, None)
        _launch_level(_levels().leave, plan, level, signals, (like, target), z, rounding)


def _launch_level(
    kernel: Any, plan: Plan, level: int, signals: tuple, like: tuple[Tensor, Tensor | None], z: Tensor, rounding: str
) -> None:
    """One program for each block of columns of each row; sizes of signals, also of contiguous ones, as `like`."""
    batch, channels, length = like[0].shape
    size, before = plan.outer[level], math.prod(plan.outer[:level])
    rest = plan.size // (before * size)
    block = min(TILE // size, rest)
    strides = (length, like[0].stride(0), like[0].stride(1), 0 if like[1] is None else like[1].stride(0))
    unit = _unit(*strides)
    sizes = (channels, *(x // unit for x in strides), rest // block, z.numel() // 2)
    tables = level_tables(size, rest, block, int(level == 0), z.device)
    constants = {"L": size, "BLOCK": block, "UNIT": unit, "REAL": level == 0, "PRECISION": rounding}
    rows = batch * channels * before
    kernel[(rest // block * rows,)](signals, tables, *sizes, **constants, num_warps=4, num_stages=1)
