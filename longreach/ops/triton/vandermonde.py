"""Sums of complex exponentials and their moments on a GPU, in Triton; defined in longreach.ops.vandermonde_native.

Both are products with a Vandermonde matrix (Gu et al., https://arxiv.org/abs/2206.11893) that is never formed: a
program takes a tile of Q x T positions of a channel and multiplies its tables of Q and T powers on tensor cores.

Floor in bytes: the sequence once, 4 b d l, and 8 b d n for the rest; the moments leave 16 b d n for every tile besides.
Operations: sums 4 b d n l, moments 8 b d n l on tensor cores (three times that in tf32x3), and (1 / Q + 1 / T) of
b d n l powers, each about 12 operations in float64 and 60 in float32.

Axes: b rows, d channels, n modes, l length.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from longreach.ops.native import LIBRARY
from longreach.ops.vandermonde_native import define_vandermonde

DTYPES = (torch.complex64,)
ENOUGH = 4 * 132
"""Programs that a GPU of the Hopper generation needs to be busy; more rows than that share a program's channel."""


def triton_sums(
    coefficient: Complex[Tensor, "... d n"], log_ratio: Complex[Tensor, "#d n"], length: int
) -> Float[Tensor, "... d {length}"]:
    """The sums of every row; both arguments are complex64.  Memory: the result."""
    y = torch.ops.longreach.vandermonde_triton(coefficient.reshape(-1, *log_ratio.shape), log_ratio, length)
    return y.view(*coefficient.shape[:-1], length)


def triton_adjoint(u: Float[Tensor, "... d l"], log_ratio: Complex[Tensor, "#d n"]) -> Complex[Tensor, "... d n"]:
    """s_n = sum_l z_n^(L-1-l) u_l for every row; `u` is float32.  Memory: 16 n bytes for each tile of `u`."""
    rows = u.reshape(-1, log_ratio.shape[0], u.shape[-1])
    found, _ = torch.ops.longreach.vandermonde_triton_moments(rows, log_ratio, True)
    return found.view(*u.shape[:-1], log_ratio.shape[-1])


def _kernels() -> ModuleType:
    """They import Triton, so not before they are needed."""
    from longreach.ops.triton import vandermonde_kernels

    return vandermonde_kernels


class _Work(NamedTuple):
    """How it is divided."""

    tiles: int
    grid: tuple[int, int]
    rows_each: int
    tile: dict[str, int]


def _divide(rows: int, channels: int, modes: int, length: int) -> _Work:
    """Short sequences have smaller tiles; the last of them is masked."""
    q, t = (16, 16) if length <= 256 else (32, 64)
    tiles = -(-length // (q * t))
    rows_each = max(1, rows * channels * tiles // ENOUGH)
    rows_each = max(-(-rows // 65535), min(rows, rows_each))
    tile = {"Q": q, "T": t, "MODES": 16 if modes <= 16 else 32, "num_warps": 4}
    return _Work(tiles, (channels * tiles, -(-rows // rows_each)), rows_each, tile)


def _dense(x: Tensor) -> Tensor:
    return x.resolve_conj().contiguous()


def _sums(coefficient: Tensor, log_ratio: Tensor, length: int) -> Tensor:
    rows, channels, modes = coefficient.shape
    y = torch.empty(rows, channels, length, dtype=torch.float32, device=coefficient.device)
    if y.numel():
        work = _divide(rows, channels, modes, length)
        pairs = (torch.view_as_real(_dense(x)) for x in (coefficient, log_ratio))
        _kernels().sums[work.grid](*pairs, y, rows, channels, modes, length, work.rows_each, **work.tile)
    return y


def _moments(u: Tensor, log_ratio: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    (rows, channels, length), modes = u.shape, log_ratio.shape[1]
    work = _divide(rows, channels, modes, length)
    parts = torch.empty(2, work.tiles, rows, channels, modes, 2, dtype=torch.float32, device=u.device)
    if parts.numel():
        tensors = (u.contiguous(), torch.view_as_real(_dense(log_ratio)), parts)
        sizes = rows, channels, modes, length, work.rows_each
        _kernels().moments[work.grid](*tensors, *sizes, REVERSE=reverse, **work.tile)
    found, derivative = torch.view_as_complex(parts.sum(1))
    return found.clone(), derivative.clone()  # two tensors, as torch asks of an operator


define_vandermonde("vandermonde_triton")
for _device in ("CPU", "CUDA"):
    LIBRARY.impl("vandermonde_triton", _sums, _device)
    LIBRARY.impl("vandermonde_triton_moments", _moments, _device)
