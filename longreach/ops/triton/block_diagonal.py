"""Products with block-diagonal matrices on a GPU, in Triton; defined in longreach.ops.block_diagonal.

A program takes a tile of rows and some outputs of one block, or of eight where blocks are small, and writes them where
they belong: nothing is permuted in memory, as it is around a product of stacked matrices.  The gradient of the weight
is a sum over rows, whose parts are added in a fixed order.

Floor in bytes, of a row with d inputs and c outputs of s bytes: s (d + c) forward, s (2 d + c) backward.  Operations of
a row: 2 n o i forward, 4 n o i backward.

Axes: t rows, n blocks, o outputs and i inputs of a block.
"""

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor

from longreach.ops.native import LIBRARY
from longreach.ops.triton.monarch import ENOUGH, PARTS, real_matrices

SMALL = 32
"""Entries of blocks of which eight are taken together."""

LIBRARY.define("block_diagonal_triton(Tensor x, Tensor weight, bool transposed) -> Tensor")
LIBRARY.define("block_diagonal_triton_gradient(Tensor grad, Tensor x, Tensor weight) -> Tensor")


def triton_block_diagonal(x: Inexact[Tensor, "*b d"], weight: Inexact[Tensor, "n o i"]) -> Inexact[Tensor, "*b c"]:
    """The product; both have one of the DTYPES of Monarch matrices.  Differentiable any number of times."""
    rows = x.reshape(-1, x.shape[-1])
    if not x.is_complex():
        return torch.ops.longreach.block_diagonal_triton(rows, weight, False).unflatten(0, x.shape[:-1])
    rows = torch.view_as_real(rows.resolve_conj()).flatten(-2)
    y = torch.ops.longreach.block_diagonal_triton(rows, real_matrices(weight), False)
    return torch.view_as_complex(y.unflatten(-1, (-1, 2))).unflatten(0, x.shape[:-1])


def _kernels() -> ModuleType:
    """They import Triton, so not before they are needed."""
    from longreach.ops.triton import block_diagonal_kernels

    return block_diagonal_kernels


def _tile(x: Tensor, size_in: int, size_out: int) -> dict[str, Any]:
    """Constants of a launch."""
    small, single = max(size_in, size_out) <= SMALL, x.dtype == torch.float32
    return {
        "BLOCKS": 8 if small else 1,
        "ROWS": 32 if small else 64 if single else 128,
        "ENTRIES_IN": 32 if single or small else 64,
        "ENTRIES": 32 if small else 128,
        "UNIT": 8 if all(size % 8 == 0 for size in (x.stride(0), size_in, size_out)) else 1,
        "PRECISION": "tf32x3",
        "num_warps": 8,
        "num_stages": 2 if small else 3,
    }


def _laid_out(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 and x.stride(0) % 8 == 0 else x.contiguous()


def _multiply(x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    x, weight = _laid_out(x), weight.contiguous()
    n, size_out, size_in = weight.mT.shape if transposed else weight.shape
    y = x.new_empty(len(x), n * size_out)
    if y.numel() == 0 or size_in == 0:
        return y.zero_()
    tile = _tile(x, size_in, size_out)
    unit, chunks = tile["UNIT"], -(-n // tile["BLOCKS"]) * -(-size_out // tile["ENTRIES"])
    sizes = len(x), x.stride(0) // unit, n, size_in // unit, size_out // unit
    grid = (chunks * -(-len(x) // tile["ROWS"]),)
    _kernels().multiply[grid](x, weight, y, *sizes, TRANSPOSED=transposed, **tile)
    return y


def _gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    x, grad = _laid_out(x), grad.contiguous()
    n, size_out, size_in = weight.shape
    if x.numel() == 0 or weight.numel() == 0:
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    tile = _tile(x, size_in, size_out)
    unit, chunks = tile["UNIT"], -(-n // tile["BLOCKS"]) * -(-size_out // tile["ENTRIES"])
    chunks *= -(-size_in // tile["ENTRIES_IN"])
    tiles = -(-len(x) // tile["ROWS"])
    each = -(-tiles // max(1, min(tiles, PARTS, ENOUGH // chunks)))
    parts = torch.empty(-(-tiles // each), *weight.shape, dtype=torch.float32, device=x.device)
    sizes = len(x), x.stride(0) // unit, n, size_in // unit, size_out // unit
    _kernels().gradient[chunks, len(parts)](x, grad, parts, *sizes, each, **tile)
    return parts.sum(0).to(weight.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.transposed = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """What the weight is to x, it is transposed to the gradient."""
    (x, weight), (needs_x, needs_weight, _) = ctx.saved_tensors, ctx.needs_input_grad
    of_x = torch.ops.longreach.block_diagonal_triton(grad, weight, not ctx.transposed) if needs_x else None
    if not needs_weight:
        return of_x, None, None
    outer, inner = (x, grad) if ctx.transposed else (grad, x)
    return of_x, torch.ops.longreach.block_diagonal_triton_gradient(outer, inner, weight), None


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    outer, inner = ctx.saved_tensors
    product = torch.ops.longreach.block_diagonal_triton
    return product(inner, grad, False), product(outer, grad, True), None


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("block_diagonal_triton", _multiply, _device)
    LIBRARY.impl("block_diagonal_triton_gradient", _gradient, _device)


@torch.library.register_fake("longreach::block_diagonal_triton")
def _fake(x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] * weight.shape[2 if transposed else 1])


@torch.library.register_fake("longreach::block_diagonal_triton_gradient")
def _fake_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return weight.new_empty(weight.shape)


torch.library.register_autograd("longreach::block_diagonal_triton", _backward, setup_context=_save)
torch.library.register_autograd(
    "longreach::block_diagonal_triton_gradient", _backward_gradient, setup_context=_save_gradient
)
