"""Product with a block-diagonal matrix: n small linear maps side by side, each on its own part of the features.

    y_k = weight_k x_k          k = 1 .. n,   x = [x_1 .. x_n],   y = [y_1 .. y_n]

The factor that Monarch matrices are made of (Dao et al. 2022, https://arxiv.org/abs/2204.00595); alone, it is the
linear map of the MLPs of Monarch Mixer.

Axes: ... any leading axes, n blocks, o outputs of a block, i inputs of a block.
"""

import torch
from jaxtyping import Inexact
from torch import Tensor

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.triton import available
from longreach.ops.triton.block_diagonal import triton_block_diagonal
from longreach.ops.triton.monarch import DTYPES

FEW_ROWS = 16
"""Below it there is too little to do for tensor cores."""


def product_dtype(x: Inexact[Tensor, "..."]) -> torch.dtype:
    """In which products with `x` are made: its own, or for real numbers up to float32 that of autocast."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.is_floating_point() and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


@op
def block_diagonal(x: Inexact[Tensor, "*b d"], weight: Inexact[Tensor, "n o i"]) -> Inexact[Tensor, "*b c"]:
    """The d = n i features of `x` mapped to c = n o, n o i operations a position; autocast rounds it."""
    _check(x, weight)
    blocks = x.unflatten(-1, (weight.shape[0], weight.shape[2]))
    return torch.einsum("...ni,noi->...no", blocks, weight).flatten(-2)


def _triton_refuses(x: Tensor, weight: Tensor) -> str | None:
    if product_dtype(x) != product_dtype(weight):
        return "takes tensors of one dtype"
    return available.refusal(x.device, product_dtype(x), DTYPES)


def _triton_yields(x: Tensor, weight: Tensor) -> str | None:
    rows = x.shape[:-1].numel()
    return f"{rows} rows do not fill its tiles" if rows < FEW_ROWS else available.interpretation(x.device)


@block_diagonal.backend("triton", refuses=_triton_refuses, yields=_triton_yields)
def _triton(x: Tensor, weight: Tensor) -> Tensor:
    """On a GPU, each block where it lies, in one pass."""
    _check(x, weight)
    dtype = product_dtype(x)
    return triton_block_diagonal(x.to(dtype), weight.to(dtype))


def _check(x: Tensor, weight: Tensor) -> None:
    n, _, i = weight.shape
    if x.shape[-1] != n * i:
        raise InputError(
            f"block_diagonal: x has {x.shape[-1]} features; the weight {tuple(weight.shape)} takes {n * i}"
        )
