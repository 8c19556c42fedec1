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


def product_dtype(x: Inexact[Tensor, "..."]) -> torch.dtype:
    """In which products with `x` are made: its own, or for real numbers up to float32 that of autocast."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.is_floating_point() and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


@op
def block_diagonal(x: Inexact[Tensor, "*b d"], weight: Inexact[Tensor, "n o i"]) -> Inexact[Tensor, "*b c"]:
    """The d = n i features of `x` mapped to c = n o, n o i operations a position; autocast rounds it."""
    n, _, i = weight.shape
    if x.shape[-1] != n * i:
        raise InputError(
            f"block_diagonal: x has {x.shape[-1]} features; the weight {tuple(weight.shape)} takes {n * i}"
        )
    return torch.einsum("...ni,noi->...no", x.unflatten(-1, (n, i)), weight).flatten(-2)
