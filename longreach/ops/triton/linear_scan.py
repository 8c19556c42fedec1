"""The linear recurrence and its adjoint on a GPU, in Triton: chunks of time side by side, as many as fill the device.

    aggregate    every chunk alone: h = factor * (the state that enters) + total             reads a, x
    carry        from chunk to chunk, the states that enter (Blelloch 1990, https://www.cs.cmu.edu/~guyb/papers/Ble93.pdf)
    walk         every chunk from its state on                                               reads a, x, writes h

Where the channels alone fill the device there is one chunk and only the walk.  The adjoint is the same in the other
direction of time, and its walk also writes the gradient of a.  No program waits for another one.

Floor in bytes, per element of s bytes: 3 s forward (5 s with chunks, whose second reading the cache may serve), 5 s
backward (7 s).  Two operations per element, in real numbers; they cost nothing beside that.

Axes: b batch, l length, n channels.
"""

import math
from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Num
from torch import Tensor

from longreach.ops.linear_scan_native import define_scan
from longreach.ops.native import LIBRARY

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128, torch.float16, torch.bfloat16)
BLOCKS = (8, 32, 64, 128)
"""Channels of a program; the rest of its 128 lanes are other chunks."""
LANES = 128
ENOUGH = 132 * 1024
"""Lanes that fill a GPU of the Hopper generation: half of what fits on its 132 multiprocessors."""
SHORTEST = 16
"""Positions of a chunk, at least."""
UNROLL = 4
"""The length of a chunk is a multiple of it; the kernels load as many positions before they store one."""


def triton_scan(a: Num[Tensor, "b l n"], x: Num[Tensor, "b l n"], initial: Num[Tensor, "b n"]) -> Num[Tensor, "b l n"]:
    """All states; the arguments have one of DTYPES in common.  Memory O(b n) or O(lanes of the GPU), besides h."""
    return torch.ops.longreach.linear_scan_triton(a, x, initial, False)


def _kernels() -> ModuleType:
    """They import Triton, so not before they are needed."""
    from longreach.ops.triton import linear_scan_kernels

    return linear_scan_kernels


class Cut(NamedTuple):
    """How the work is divided."""

    n_chunks: int
    chunk_length: int
    block: int


def cut_time(batch: int, length: int, channels: int) -> Cut:
    """How recurrences are divided: no more chunks than needed, nor than 4 sqrt(length), as the carry walks along."""
    wanted = min(-(-ENOUGH // max(1, batch * channels)), 4 * math.isqrt(length), length // SHORTEST)
    chunk_length = -(-length // (max(1, wanted) * UNROLL)) * UNROLL
    block = next((size for size in BLOCKS if size >= channels), BLOCKS[-1])
    return Cut(-(-length // chunk_length), chunk_length, block)


def _parts(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _states_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _run(
    a: Tensor, x: Tensor, initial: Tensor, reverse: bool, other: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The states; with `other` this is the adjoint walk, and the second result is the gradient of a."""
    batch, length, channels = x.shape
    a, x = a.resolve_conj(), x.resolve_conj().contiguous()
    h = torch.empty_like(x)
    product = None if other is None else torch.empty_like(x)
    if x.numel() == 0:
        return h, product
    entering = initial.to(_states_dtype(x.dtype)).resolve_conj().contiguous()
    cut = cut_time(batch, length, channels)
    blocks, rows = -(-channels // cut.block), LANES // cut.block
    grid = (batch, blocks * -(-cut.n_chunks // rows))
    sizes = length, channels, cut.n_chunks, cut.chunk_length, *a.stride()
    constants = {"SHIFT": int(other is not None), "REVERSE": reverse, "COMPLEX": x.is_complex()}
    tile = {**constants, "ROWS": rows, "BLOCK": cut.block, "num_warps": 4}
    if cut.n_chunks > 1:
        factors, totals = (entering.new_empty(batch, cut.n_chunks, channels) for _ in range(2))
        _kernels().aggregate[grid](*(_parts(y) for y in (a, x, factors, totals)), *sizes, **tile)
        tensors = (_parts(y) for y in (entering, factors, totals))
        across = {"COMPLEX": x.is_complex(), "BLOCK": 32, "num_warps": 1}
        _kernels().carry[(batch * -(-channels // 32),)](*tensors, channels, cut.n_chunks, **across)
        entering = totals
    tensors = (None if y is None else _parts(y) for y in (a, x, entering, h, other, product))
    _kernels().walk[grid](*tensors, *sizes, **tile)
    return h, product


def _scan(a: Tensor, x: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    return _run(a, x, initial, reverse)[0]


def _adjoint(grad: Tensor, a: Tensor, initial: Tensor, h: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    g, grad_a = _run(a, grad, torch.zeros_like(initial), not reverse, h.resolve_conj().contiguous())
    assert grad_a is not None
    first = -1 if reverse else 0
    grad_a[:, first] = g[:, first] * initial.conj()
    return grad_a, g, g[:, first] * a[:, first].conj()


define_scan("linear_scan_triton")
for _device in ("CPU", "CUDA"):
    LIBRARY.impl("linear_scan_triton", _scan, _device)
    LIBRARY.impl("linear_scan_triton_adjoint", _adjoint, _device)
