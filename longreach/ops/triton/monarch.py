"""Products with Monarch matrices of two factors on a GPU, in Triton; butterfly matrices are made of these, too.

    y[s, l] = sum_{k, i} second[l, s, (k, i)] sum_p first[k, (i, l), p] x[k, p]       i = 1 .. rank

The adjoint matrix is applied in the same way from the other side.  Seen as l x k blocks of s x p numbers, the matrix
has this rank in each block, and the factors of a block are no other's: a program takes a tile of rows and some l, walks
along k, and makes the hidden numbers between these k and l on chip just before it multiplies them with `second`.
Nothing hidden is stored, and nothing is permuted in memory: the shuffles are how tiles are addressed.  The gradient of
a factor is a sum over rows of products with the same hidden numbers, made again; parts are added in a fixed order.

Complex numbers are pairs of real ones, their matrices real ones of twice the size which shuffle pairs: the width is 2.

Floor in bytes, of a row of n entries of s bytes in and out: 2 s n forward, 3 s n backward.  Operations of a row:
2 k l rank (p + s) forward, three times that backward, of which a third makes hidden numbers again.

Axes: t rows, z stacks of matrices side by side, n entries; blocks of `first`: k, q outputs, p inputs; of `second`: l, s
outputs, r inputs.  q = rank l, r = rank k.
"""

from types import ModuleType
from typing import Any, NamedTuple

import torch
from jaxtyping import Inexact
from torch import Tensor

from longreach.ops.gradients import gradients_by_autograd
from longreach.ops.native import LIBRARY

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.complex64)
EXACT_RANKS = (1, 2, 4)
"""Ranks for which several blocks are taken at a time, so that products fill tensor cores; others are filled up."""
ENOUGH = 4 * 132
"""Programs that keep a GPU of the Hopper generation busy."""
PARTS = 128
"""Of a gradient, at most."""

LIBRARY.define("monarch_triton(Tensor x, Tensor first, Tensor second, int width, bool adjoint) -> Tensor")
LIBRARY.define(
    "monarch_triton_gradients(Tensor grad, Tensor x, Tensor first, Tensor second, int width, bool adjoint) "
    "-> (Tensor, Tensor)"
)


def triton_monarch(
    x: Inexact[Tensor, "*b z n"], first: Inexact[Tensor, "z k q p"], second: Inexact[Tensor, "z l s r"], adjoint: bool
) -> Inexact[Tensor, "*b z m"]:
    """The product with each of the z matrices, or its adjoint; all have one of DTYPES in common.

    Differentiable any number of times; memory, besides results, for parts of the gradients of factors.
    """
    rows = x.reshape(-1, *x.shape[-2:])
    if not x.is_complex():
        y = torch.ops.longreach.monarch_triton(rows, first, second, 1, adjoint)
        return y.unflatten(0, x.shape[:-2])
    rows = torch.view_as_real(rows.resolve_conj()).flatten(-2)
    y = torch.ops.longreach.monarch_triton(rows, real_matrices(first), real_matrices(second), 2, adjoint)
    return torch.view_as_complex(y.unflatten(-1, (-1, 2))).unflatten(0, x.shape[:-2])


def real_matrices(matrices: Inexact[Tensor, "*z o i"]) -> Inexact[Tensor, "*z o2 i2"]:
    """What complex matrices do to pairs of real numbers: twice as many rows and columns."""
    re, im = torch.view_as_real(matrices.resolve_conj()).unbind(-1)
    columns = torch.stack([torch.stack([re, im], dim=-2), torch.stack([-im, re], dim=-2)], dim=-1)  # (o, 2, i, 2)
    return columns.flatten(-2).flatten(-3, -2)


def _kernels() -> ModuleType:
    """They import Triton, so not before they are needed."""
    from longreach.ops.triton import monarch_kernels

    return monarch_kernels


class _Sizes(NamedTuple):
    """The side of `near`, the factor that a row meets first, that of `far`, and the rank between each two blocks."""

    blocks_in: int
    size_in: int
    blocks_out: int
    size_out: int
    rank: int


def _sizes(first: Tensor, second: Tensor, adjoint: bool) -> _Sizes:
    (_, k, q, p), (_, l, s, _) = first.shape, second.shape
    return _Sizes(l, s, k, p, q // l) if adjoint else _Sizes(k, p, l, s, q // l)


def _tile(sizes: _Sizes, stride: int, dtype: torch.dtype, adjoint: bool, width: int) -> dict[str, Any]:
    """Constants of a launch: 16,384 numbers of the result a program or fewer, in whole blocks where those are small."""
    single, rank = dtype == torch.float32, sizes.rank
    exact = rank in EXACT_RANKS
    ranks = rank if exact else 16 if rank <= 16 else 32 if single else 64
    blocks = 16 // rank if exact else 1
    entries = max(32, min(_power_of_two(sizes.size_out), 1024 // blocks, 256))
    spread = [stride, sizes.size_in, sizes.size_out, *([] if exact else [rank])]
    unit_sizes = 8 if all(x % 8 == 0 for x in spread) else 1
    return {
        "TRANSPOSED": adjoint,
        "WIDTH": width,
        "BLOCKS": blocks,
        "RANKS": ranks,
        "ROWS": 64 if not exact else 16 if single and blocks * entries > 512 else 32,
        "ENTRIES_IN": (16 if exact else 32) * (1 if single else 2),
        "ENTRIES": entries,
        "UNIT_BLOCKS": 8 if unit_sizes == 8 and sizes.blocks_in % 8 == sizes.blocks_out % 8 == 0 else 1,
        "UNIT_SIZES": unit_sizes,
        "PRECISION": "tf32x3",
        "num_warps": 8 if blocks in (1, 8, 16) else 4,
        "num_stages": 2,
    }


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _arguments(x: Tensor, sizes: _Sizes, tile: dict[str, Any]) -> tuple[int, ...]:
    """Lengths and strides as the kernels take them, in units."""
    blocks, entries = tile["UNIT_BLOCKS"], tile["UNIT_SIZES"]
    rank = sizes.rank if tile["BLOCKS"] > 1 else sizes.rank // entries
    inward, outward = (sizes.blocks_in // blocks, sizes.size_in // entries), sizes.blocks_out // blocks
    return len(x), x.stride(0) // entries, x.stride(1) // entries, *inward, outward, sizes.size_out // entries, rank


def _laid_out(x: Tensor) -> Tensor:
    """With neighbouring entries next to each other, and strides that have units in common with the sizes."""
    return x if x.stride(2) == 1 and x.stride(0) % 8 == x.stride(1) % 8 == 0 else x.contiguous()


def _multiply(x: Tensor, first: Tensor, second: Tensor, width: int, adjoint: bool) -> Tensor:
    x, first, second = _laid_out(x), first.contiguous(), second.contiguous()
    sizes = _sizes(first, second, adjoint)
    y = x.new_empty(*x.shape[:2], sizes.blocks_out * sizes.size_out)
    if y.numel() == 0 or x.shape[2] == 0:
        return y.zero_()
    tile = _tile(sizes, x.stride(0), x.dtype, adjoint, width)
    near, far = (second, first) if adjoint else (first, second)
    programs = -(-sizes.blocks_out // tile["BLOCKS"]) * -(-sizes.size_out // tile["ENTRIES"])
    grid = programs * -(-len(x) // tile["ROWS"]), x.shape[1]
    _kernels().multiply[grid](x, near, far, y, *_arguments(x, sizes, tile), **tile)
    return y


def _far_gradient(x: Tensor, near: Tensor, far: Tensor, grad: Tensor, width: int, adjoint: bool) -> Tensor:
    """The gradient of the factor that makes the result; `grad` is the result's."""
    sizes = _sizes(*((far, near) if adjoint else (near, far)), adjoint)
    x, near, grad = _laid_out(x), near.contiguous(), grad.contiguous()
    if x.numel() == 0 or far.numel() == 0:
        return torch.zeros_like(far)
    tile = _tile(sizes, x.stride(0), x.dtype, adjoint, width)
    chunks = -(-sizes.blocks_in // tile["BLOCKS"]) * -(-sizes.blocks_out // tile["BLOCKS"])
    chunks *= -(-sizes.rank // tile["RANKS"]) * -(-sizes.size_out // tile["ENTRIES"])
    tiles = -(-len(x) // tile["ROWS"])
    each = -(-tiles // max(1, min(tiles, PARTS, ENOUGH // (chunks * len(far)))))
    parts = torch.empty(-(-tiles // each), *far.shape, dtype=torch.float32, device=far.device)
    grid = chunks, len(parts), len(far)
    _kernels().gradient[grid](x, near, grad, parts, *_arguments(x, sizes, tile), each, **tile)
    return parts.sum(0).to(far.dtype)


def _gradients(
    grad: Tensor, x: Tensor, first: Tensor, second: Tensor, width: int, adjoint: bool
) -> tuple[Tensor, Tensor]:
    """Those of both factors: what one is to the matrix, the other one is to its adjoint."""
    of_adjoint = (grad, second, first, x) if not adjoint else (x, second, first, grad)
    of_product = (x, first, second, grad) if not adjoint else (grad, first, second, x)
    return _far_gradient(*of_adjoint, width, True), _far_gradient(*of_product, width, False)


def _by_definition(x: Tensor, first: Tensor, second: Tensor, width: int, adjoint: bool) -> Tensor:
    """On torch, for derivatives of derivatives."""
    (_, k, q, _), (_, l, s, r) = first.shape, second.shape
    if adjoint:
        y = torch.einsum("tzls,zlsr->tzlr", _deal_out(x, l, width).unflatten(-1, (l, s)), second).flatten(-2)
        y = _deal_out(y, r // width, width).unflatten(-1, (k, q))
        return torch.einsum("tzkq,zkqp->tzkp", y, first).flatten(-2)
    y = torch.einsum("tzkp,zkqp->tzkq", x.unflatten(-1, (k, -1)), first).flatten(-2)
    y = torch.einsum("tzlr,zlsr->tzls", _deal_out(y, l, width).unflatten(-1, (l, r)), second).flatten(-2)
    return _deal_out(y, s // width, width)


def _deal_out(x: Tensor, blocks: int, width: int) -> Tensor:
    """(rows, blocks, width) -> (blocks, rows, width) in the last axis."""
    return x.unflatten(-1, (-1, blocks, width)).transpose(-2, -3).flatten(-3)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.width, ctx.adjoint = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (x, first, second), options = ctx.saved_tensors, (ctx.width, ctx.adjoint)
    needed = ctx.needs_input_grad
    if torch.is_grad_enabled():
        return tuple(gradients_by_autograd(_by_definition, (x, first, second, *options), needed, grad))
    of_x, factors = None, (None, None)
    if needed[0]:
        of_x = torch.ops.longreach.monarch_triton(grad, first, second, ctx.width, not ctx.adjoint)
    if needed[1] or needed[2]:
        factors = torch.ops.longreach.monarch_triton_gradients(grad, x, first, second, *options)
    return of_x, *factors, None, None


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("monarch_triton", _multiply, _device)
    LIBRARY.impl("monarch_triton_gradients", _gradients, _device)


@torch.library.register_fake("longreach::monarch_triton")
def _fake(x: Tensor, first: Tensor, second: Tensor, width: int, adjoint: bool) -> Tensor:
    sizes = _sizes(first, second, adjoint)
    return x.new_empty(*x.shape[:2], sizes.blocks_out * sizes.size_out)


@torch.library.register_fake("longreach::monarch_triton_gradients")
def _fake_gradients(
    grad: Tensor, x: Tensor, first: Tensor, second: Tensor, width: int, adjoint: bool
) -> tuple[Tensor, Tensor]:
    return first.new_empty(first.shape), second.new_empty(second.shape)


torch.library.register_autograd("longreach::monarch_triton", _backward, setup_context=_save)
