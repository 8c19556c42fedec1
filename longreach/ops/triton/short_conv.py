"""The short convolution and its adjoint on a GPU, in Triton; defined in longreach.ops.short_conv.

A program has a tile of channels and positions.  It reads its samples once for each tap, all but the first time from
the cache, and sums in float32 or wider; positions or channels may lie side by side, and no copy is made of either.  A
program of the adjoint walks over several tiles: a sample meets the gradients of the outputs that it went into, which
gives its own gradient and, summed over samples, those of the taps; torch adds the sums of the programs, in a fixed
order.  The tail is what lies before the first position, for one tile more.

Floor in bytes, per element of s bytes: 2 s forward, 3 s backward; 2 k operations forward, 4 k backward.

Axes: b batch, d channels, l length, k taps.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from longreach.ops.native import LIBRARY
from longreach.ops.short_conv_native import channels_last, define_short_conv, empty_like, laid_out
from longreach.ops.triton import available

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WIDEST = 16
"""Taps are unrolled, and the adjoint has a register for each in every lane."""
TILES_FIRST = ((32, 32), (8, 128), (1, 1024))
"""Channels and positions of a tile whose positions lie side by side; the first one with room for all of them."""
TILES_LAST = ((32, 32), (64, 16))
"""The same where channels do, and it is channels that need room."""
MANY = 32
"""Bytes of a sum times taps above which a tile has twice the threads, for their registers."""
ENOUGH = 16 * 132
"""Programs that fill a GPU of the Hopper generation: 128 threads each, 16 on each of its 132 multiprocessors."""


def refusal(
    x: Float[Tensor, "b d l"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None,
    tail: Float[Tensor, "b d _"] | None,
) -> str | None:
    """Why there is no kernel for these arguments, or None."""
    if weight.shape[1] > WIDEST:
        return f"has no kernel for more than {WIDEST} taps"
    reasons = (available.refusal(y.device, y.dtype, DTYPES) for y in (x, weight, bias, tail) if y is not None)
    return next((reason for reason in reasons if reason is not None), None)


def triton_short_conv(
    x: Float[Tensor, "b d l"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, " d"] | None,
    tail: Float[Tensor, "b d _"] | None,
) -> Float[Tensor, "b d l"]:
    """What longreach.ops.short_conv defines; dtypes may be mixed.  Memory: the result, which lies as `x` does."""
    return torch.ops.longreach.short_conv_triton(x, weight, bias, tail)


def _kernels() -> ModuleType:
    """They import Triton, so not before they are needed."""
    from longreach.ops.triton import short_conv_kernels

    return short_conv_kernels


class Rows(NamedTuple):
    """A signal as the kernels read it: which axis lies side by side, and the strides of the others."""

    signal: Tensor
    last: bool
    strides: tuple[int, int]


def _rows(x: Tensor, last: bool) -> Rows:
    """`x`, or a copy of it if neither axis, or not the wanted one, lies side by side."""
    inner = 1 if last else 2
    if x.stride(inner) != 1 and x.shape[inner] > 1:
        x = laid_out(x, last)
    return Rows(x, last, (x.stride(0), x.stride(3 - inner)))


def _constants(rows: Sequence[Rows], width: int) -> tuple[tuple[int, int], dict[str, Any]]:
    """Channels and length, that which is side by side in units, and what is compiled into a kernel."""
    x, last = rows[0].signal, rows[0].last
    inner, outer = (1, 2) if last else (2, 1)
    aligned = all(signal.data_ptr() % 16 == 0 for signal, _, _ in rows)
    unit = 8 if aligned and all(size % 8 == 0 for row in rows for size in (*row.strides, x.shape[inner])) else 1
    tiles = TILES_LAST if last else TILES_FIRST
    tile = next((tile for tile in tiles if tile[0 if last else 1] >= x.shape[inner]), tiles[-1])
    sizes = {inner: x.shape[inner] // unit, outer: x.shape[outer]}
    warps = 4 if width * torch.promote_types(x.dtype, torch.float32).itemsize <= MANY else 8
    names = ("WIDTH", "LAST", "UNIT", "CHANNELS", "POSITIONS", "num_warps")
    return (sizes[1], sizes[2]), dict(zip(names, (width, last, unit, *tile, warps), strict=True))


def _strides(row: Rows, unit: int) -> tuple[int, int]:
    return row.strides[0] // unit, row.strides[1] // unit


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None) -> Tensor:
    y = empty_like(x)
    if y.numel() == 0:
        return y
    rows = _rows(x, channels_last(x))
    sizes, constants = _constants([rows], weight.shape[1])
    (batch, channels, length), unit = x.shape, constants["UNIT"]
    grid = (batch * _cdiv(channels, constants["CHANNELS"]) * _cdiv(length, constants["POSITIONS"]),)
    tensors = (rows.signal, *(None if z is None else z.contiguous() for z in (weight, bias, tail)), y)
    with available.on(x.device):
        _kernels().forward[grid](*tensors, *sizes, *_strides(rows, unit), **constants)
    return y


def _adjoint(
    grad: Tensor, needed: Sequence[bool], x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None
) -> list[Tensor]:
    grad_x, width = empty_like(x), weight.shape[1]
    grad_tail = None if tail is None else torch.empty_like(tail, memory_format=torch.contiguous_format)
    if grad_x.numel():
        sums = _gradients(grad, x, weight, tail, grad_x, grad_tail).sum((0, 1))
    else:
        sums, grad_tail = grad.new_zeros(width + 1, x.shape[1]), None if grad_tail is None else grad_tail.zero_()
    of_bias = None if bias is None else sums[width].to(bias.dtype, copy=True)
    found = grad_x, sums[:width].T.to(weight.dtype).contiguous(), of_bias, grad_tail
    return [y for y, wanted in zip(found, needed, strict=True) if wanted and y is not None]


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, tail: Tensor | None, grad_x: Tensor, grad_tail: Tensor | None
) -> Tensor:
    """Writes the gradients of signal and tail; returns those of taps and bias by each program, (b, parts, k + 1, d)."""
    (batch, channels, length), width = x.shape, weight.shape[1]
    rows = _rows(x, channels_last(x))
    grads = _rows(grad, rows.last)
    sizes, constants = _constants([rows, grads], width)
    unit, tiles = constants["UNIT"], _cdiv(length, constants["POSITIONS"])
    blocks = batch * _cdiv(channels, constants["CHANNELS"])
    tiles_each = _cdiv(tiles, max(1, ENOUGH // blocks))
    n_parts = _cdiv(tiles, tiles_each)
    wide = torch.promote_types(x.dtype, torch.float32)
    sums = torch.empty(batch, n_parts, width + 1, channels, dtype=wide, device=x.device)
    tensors = (rows.signal, weight.contiguous(), None if tail is None else tail.contiguous(), grads.signal)
    numbers = (*sizes, n_parts, tiles_each, *_strides(rows, unit), *_strides(grads, unit))
    with available.on(x.device):
        _kernels().adjoint[(blocks * n_parts,)](*tensors, grad_x, grad_tail, sums, *numbers, **constants)
    return sums


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


define_short_conv("short_conv_triton")
for _device in ("CPU", "CUDA"):
    LIBRARY.impl("short_conv_triton", _forward, _device)
    LIBRARY.impl("short_conv_triton_adjoint", _adjoint, _device)
