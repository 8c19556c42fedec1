"""Linear maps between the layout of modules, (batch, length, dim), and that of convolutions, (batch, channels, length).

Each is one matrix product that writes the layout that is wanted, instead of a product and a transposed copy, unless the
product is so much faster otherwise that the copy does not matter (longreach/ops/linear.py).

Axes: b batch, l length, d width outside, c channels inside.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from longreach.ops.linear import linear
from longreach.ops.transposed import transposed


def linear_to_channels(
    x: Float[Tensor, "b l d"], weight: Float[Tensor, "c d"], bias: Float[Tensor, " c"] | None
) -> Float[Tensor, "b c l"]:
    """x W^T + b with channels first, O(b l c d): one product of all rows is faster than one for each."""
    if linear.choose(x, weight, bias) == "onednn":
        return transposed(linear(x, weight, bias))
    rows = x.flatten(0, 1).mT
    product = weight @ rows if bias is None else torch.addmm(bias[:, None], weight, rows)
    return product.unflatten(1, x.shape[:2]).transpose(0, 1)


def linear_from_channels(
    y: Float[Tensor, "b c l"], weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None
) -> Float[Tensor, "b l d"]:
    """y^T W^T + b from channels first, O(b l c d)."""
    if linear.choose(y.mT, weight, bias) == "onednn":
        return linear(transposed(y), weight, bias)
    matrix = weight.mT.expand(y.shape[0], -1, -1)
    return torch.bmm(y.mT, matrix) if bias is None else torch.baddbmm(bias, y.mT, matrix)
