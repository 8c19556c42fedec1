"""Block-diagonal linear maps, and the MLP of Monarch Mixer made of them (Fu et al. 2023, https://arxiv.org/abs/2310.12109).

    plain   down(gelu(up x))
    gated   down(gelu(a) b),  [a, b] = up x

`up` and `down` are block-diagonal with n blocks, which divides parameters and operations by n.  Features of different
blocks do not meet in `down(up(.))`, except that the gate pairs the first half of the features with the second.

Axes: *b any leading axes, d and c numbers of features.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.ops.block_diagonal import block_diagonal


class BlockDiagonalLinear(nn.Module):
    """A linear map with a block-diagonal matrix, in place of nn.Linear.

    Args:
        in_features: features of the input.
        out_features: features of the output.
        n_blocks: number of blocks.  Where it does not divide a number of features, blocks are rounded up, the input is
            filled up with zeros and the last outputs are left out.
        bias: add a trained constant.
        shuffle: before, read the features in columns instead of n_blocks rows, so that every block gets some of every
            row (shuffle).
    """

    def __init__(
        self, in_features: int, out_features: int, *, n_blocks: int = 4, bias: bool = True, shuffle: bool = False
    ) -> None:
        super().__init__()
        if min(in_features, out_features, n_blocks) < 1:
            raise InputError(f"{in_features=}, {out_features=}, {n_blocks=}: each must be at least 1")
        self.out_features, self.shuffle = out_features, shuffle
        rows, columns = math.ceil(out_features / n_blocks), math.ceil(in_features / n_blocks)
        self.weight = nn.Parameter(torch.empty(n_blocks, rows, columns).uniform_(-(columns**-0.5), columns**-0.5))
        bound = out_features**-0.5
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b c"]:
        """d c / n_blocks operations at every position."""
        n_blocks, _, columns = self.weight.shape
        x = F.pad(x, (0, n_blocks * columns - x.shape[-1]))
        if self.shuffle:
            x = x.unflatten(-1, (n_blocks, columns)).mT.flatten(-2)
        y = block_diagonal(x, self.weight)[..., : self.out_features]
        return y if self.bias is None else (y + self.bias).to(y.dtype)


class BlockDiagonalMLP(nn.Module):
    """Channel mixer of Monarch Mixer; in parentheses the names in the published code.

    Args:
        d_model: width of input and output.
        expand: width of the inner layer in multiples of `d_model`.
        n_blocks: number of blocks (monarch_mlp_nblocks).
        gated: gate one half of a doubled inner layer with the other (use_glu_mlp).
        dropout: probability of dropping an inner activation.
    """

    def __init__(
        self, d_model: int, *, expand: float = 4.0, n_blocks: int = 4, gated: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inner = round(expand * d_model)
        self.gated = gated
        self.up = BlockDiagonalLinear(d_model, (2 if gated else 1) * inner, n_blocks=n_blocks, bias=False)
        self.down = BlockDiagonalLinear(inner, d_model, n_blocks=n_blocks)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """(4 or, gated, 6) d^2 expand / n_blocks operations a position."""
        h = self.up(x)
        if self.gated:
            h, gate = h.chunk(2, dim=-1)
            return self.down(self.dropout(F.gelu(h) * gate))
        return self.down(self.dropout(F.gelu(h)))
