"""Sums of simple poles and their adjoint on a GPU, in Triton; defined in longreach.ops.cauchy_native.

A lane of the sums is a point and goes through the poles; a lane of the adjoint is a pole and some of the points, and
goes through them.  Up to four rows of coefficients share the fractions, as the four of S4's low-rank correction do
(https://arxiv.org/abs/2111.00396).  No Cauchy matrix is stored, and nothing is kept for the adjoint but the arguments.

Floor in bytes, for elements of s bytes: s b d k for the sums, written, and for the adjoint, read.  Operations: for each
channel, pole and point 16 and two reciprocals, and 8 more for each row; the adjoint 22 and two, and 16 for each row.
Above 2 poles this takes longer than the bytes do.

Axes: b rows, d channels, n poles, k points.
"""

from types import ModuleType

import torch
from jaxtyping import Complex
from torch import Tensor

from longreach.ops.cauchy_native import define_cauchy
from longreach.ops.native import LIBRARY

DTYPES = (torch.complex64, torch.complex128)
ENOUGH = 4 * 132
"""Programs that keep a GPU of the Hopper generation busy; the adjoint splits the points until there are as many."""
MAX_PARTS = 64
"""Parts of the points that the adjoint leaves for torch to add."""


def triton_cauchy(
    v: Complex[Tensor, "... d n"], z: Complex[Tensor, " k"], w: Complex[Tensor, "d n"]
) -> Complex[Tensor, "... d k"]:
    """The sums of every row; the arguments have one of DTYPES in common.  Memory: the result."""
    r = torch.ops.longreach.cauchy_triton(v.reshape(-1, *w.shape), z, w)
    return r.view(*v.shape[:-1], len(z))


def _kernels() -> ModuleType:
    """They import Triton, so not before they are needed."""
    from longreach.ops.triton import cauchy_kernels

    return cauchy_kernels


def _pairs(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj().contiguous())


def _sums(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    (rows, channels, poles), points = v.shape, len(z)
    r = v.new_empty(rows, channels, points)
    if r.numel():
        tile = {"ROWS": 1 if rows == 1 else 4, "POINTS": 128, "num_warps": 4}
        grid = (channels * -(-points // tile["POINTS"]), -(-rows // tile["ROWS"]))
        _kernels().sums[grid](
            *(_pairs(x) for x in (v, z, w)), torch.view_as_real(r), rows, channels, poles, points, **tile
        )
    return r


def _adjoint(grad: Tensor, v: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    (rows, channels, poles), points = v.shape, len(z)
    if not v.numel() or not points:
        return torch.zeros_like(v), torch.zeros_like(w)
    row_block, point_block = (1, 64) if rows == 1 else (4, 16)
    tile = {"ROWS": row_block, "POLES": 16, "POINTS": point_block, "num_warps": 4}
    programs, row_blocks = channels * -(-poles // 16), -(-rows // row_block)
    parts = max(1, min(ENOUGH // (programs * row_blocks), points // (4 * point_block), MAX_PARTS))
    points_each = -(-points // (parts * point_block)) * point_block
    parts = -(-points // points_each)
    found = v.new_empty(2, parts, rows, channels, poles)
    tensors = (*(_pairs(x) for x in (grad, z, w)), torch.view_as_real(found))
    sizes = rows, channels, poles, points, points_each
    _kernels().adjoint[programs, row_blocks, parts](*tensors, *sizes, **tile)
    grad_v, squares = found.sum(1)
    return grad_v.clone(), (v.conj() * squares).sum(0)


define_cauchy("cauchy_triton")
for _device in ("CPU", "CUDA"):
    LIBRARY.impl("cauchy_triton", _sums, _device)
    LIBRARY.impl("cauchy_triton_adjoint", _adjoint, _device)
