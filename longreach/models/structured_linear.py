"""Linear maps with butterfly and Monarch matrices, in place of nn.Linear.

    ButterflyLinear   2 n log2 n numbers for n features    longreach.ops.butterfly
    MonarchLinear     2 n^2 / n_blocks numbers             longreach.ops.monarch

Both take any number of features: inputs are filled up with zeros, and the last outputs left out.  `nearest` starts them
near a given nn.Linear (longreach.ops.structured_projection).  Dao et al. 2019, https://arxiv.org/abs/1903.05895, and
2022, https://arxiv.org/abs/2204.00595.

Axes: *b any leading axes, d and c numbers of features, k stacks, m factors, h places of a factor.
"""

import math
from typing import Literal

import torch
from jaxtyping import Inexact
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.ops.butterfly import butterfly_multiply, transpose_twiddle, unitary_twiddle
from longreach.ops.monarch import monarch
from longreach.ops.structured_projection import project_butterfly, project_monarch

Numbers = Literal["real", "complex", "unitary"]
ButterflyInit = Literal["normal", "orthogonal", "identity"]


class ButterflyLinear(nn.Module):
    """A linear map with a butterfly matrix; in parentheses the names in the published code.

    With n the next power of two of `in_features`, several matrices of n x n side by side make more than n outputs.

    Args:
        in_features: features of the input (in_size).
        out_features: features of the output (out_size).
        bias: add a trained constant.
        numbers: `real`; `complex`, stored as trailing pairs (complex); `unitary`, complex matrices that stay unitary,
            because their angles are trained (ButterflyUnitary).
        init: factors of independent numbers, of orthogonal or unitary ones, or of identities (init: randn, ortho,
            identity).  Unitary numbers start orthogonal.
        n_blocks: number of butterflies in a row, alternating in their direction (nblocks).
        increasing: whether the strides of the first block increase (increasing_stride).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        numbers: Numbers = "real",
        init: ButterflyInit = "normal",
        n_blocks: int = 1,
        increasing: bool = True,
    ) -> None:
        super().__init__()
        if min(in_features, out_features, n_blocks) < 1:
            raise InputError(f"{in_features=}, {out_features=}, {n_blocks=}: each must be at least 1")
        if numbers == "unitary" and init == "identity":
            raise InputError("numbers='unitary' starts as random unitary matrices; take init='orthogonal'")
        self.in_features, self.out_features = in_features, out_features
        self.numbers, self.increasing = numbers, increasing
        levels = max(1, (in_features - 1).bit_length())
        places = (math.ceil(out_features / 2**levels), n_blocks, levels, 2 ** (levels - 1))
        self.twiddle = nn.Parameter(initial_twiddle(places, numbers, init))
        bound = in_features**-0.5
        pair = () if numbers == "real" else (2,)
        self.bias = nn.Parameter(torch.empty(out_features, *pair).uniform_(-bound, bound)) if bias else None

    @classmethod
    def nearest(cls, linear: nn.Linear, *, increasing: bool = True) -> "ButterflyLinear":
        """One block near a trained linear map, with its bias; exact if that is a butterfly."""
        found = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, increasing=increasing)
        found.to(linear.weight)
        n = 2 * found.twiddle.shape[3]
        with torch.no_grad():
            dense = F.pad(linear.weight, (0, n - linear.in_features, 0, -linear.out_features % n))
            found.twiddle.copy_(project_butterfly(dense.unflatten(0, (-1, n)), increasing=increasing))
            if found.bias is not None:
                found.bias.copy_(linear.bias)
        return found

    def forward(
        self, x: Inexact[Tensor, "*b d"], *, transpose: bool = False, conjugate: bool = False
    ) -> Inexact[Tensor, "*b c"]:
        """O(n log n) operations for every n outputs; complex if the numbers or `x` are.

        `transpose` applies the transposed square matrices, and `conjugate` the conjugate ones; the bias stays.
        """
        if x.shape[-1] != self.in_features:
            raise InputError(f"ButterflyLinear: x has {x.shape[-1]} features, not in_features={self.in_features}")
        twiddle, increasing = self.matrices(), self.increasing
        if transpose:
            increasing = increasing == (twiddle.shape[1] % 2 == 0)
            twiddle = transpose_twiddle(twiddle)
        if conjugate:
            twiddle = twiddle.conj()
        n = 2 * twiddle.shape[3]
        padded = F.pad(x, (0, n - self.in_features))[..., None, :].expand(*x.shape[:-1], len(twiddle), n)
        y = butterfly_multiply(padded, twiddle, increasing).flatten(-2)[..., : self.out_features]
        if self.bias is None:
            return y
        return y + (self.bias if self.numbers == "real" else torch.view_as_complex(self.bias))

    def matrices(self) -> Inexact[Tensor, "k blocks m h 2 2"]:
        """The twiddle as numbers of its kind."""
        if self.numbers == "unitary":
            return unitary_twiddle(self.twiddle)
        return self.twiddle if self.numbers == "real" else torch.view_as_complex(self.twiddle)


def initial_twiddle(places: tuple[int, ...], numbers: Numbers, init: ButterflyInit) -> Inexact[Tensor, "..."]:
    """What a twiddle with these many places starts from: matrices, pairs of their numbers, or angles.

    Orthogonal matrices are rotations and reflections alike, unitary ones come from the Haar measure of U(2).
    """
    if numbers == "unitary" or (numbers == "complex" and init == "orthogonal"):
        phi, turns = torch.rand(places).sqrt().asin(), torch.rand(*places, 3) * (2 * math.pi)
        angles = torch.cat([phi[..., None], turns], dim=-1)
        return angles if numbers == "unitary" else torch.view_as_real(unitary_twiddle(angles))
    dtype = torch.get_default_dtype() if numbers == "real" else torch.get_default_dtype().to_complex()
    if init == "identity":
        matrices = torch.eye(2, dtype=dtype).repeat(*places, 1, 1)
    elif init == "normal":
        matrices = torch.randn(*places, 2, 2, dtype=dtype) / math.sqrt(2)
    else:
        angle, sign = torch.rand(places) * (2 * math.pi), torch.randint(2, places) * 2.0 - 1.0
        numbers_in_rows = [sign * angle.cos(), -sign * angle.sin(), angle.sin(), angle.cos()]
        matrices = torch.stack(numbers_in_rows, dim=-1).unflatten(-1, (2, 2))
    return torch.view_as_real(matrices) if numbers == "complex" else matrices


class MonarchLinear(nn.Module):
    """A linear map with a Monarch matrix of two factors; in parentheses the names in the published code.

    Args:
        in_features: features of the input.
        out_features: features of the output.
        n_blocks: number of blocks of both factors (nblocks).  Where it does not divide a number of features, blocks are
            rounded up.
        bias: add a trained constant.
    """

    def __init__(self, in_features: int, out_features: int, *, n_blocks: int = 4, bias: bool = True) -> None:
        super().__init__()
        if min(in_features, out_features, n_blocks) < 1:
            raise InputError(f"{in_features=}, {out_features=}, {n_blocks=}: each must be at least 1")
        self.in_features, self.out_features = in_features, out_features
        columns, rows = math.ceil(in_features / n_blocks), math.ceil(out_features / n_blocks)
        inner = min(columns, rows)
        self.first = nn.Parameter(torch.empty(n_blocks, inner, columns).uniform_(-(columns**-0.5), columns**-0.5))
        self.second = nn.Parameter(torch.empty(n_blocks, rows, inner).uniform_(-(inner**-0.5), inner**-0.5))
        bound = in_features**-0.5
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound)) if bias else None

    @classmethod
    def nearest(cls, linear: nn.Linear, *, n_blocks: int = 4) -> "MonarchLinear":
        """The nearest map to a trained linear map (Frobenius norm), with its bias."""
        found = cls(linear.in_features, linear.out_features, n_blocks=n_blocks, bias=linear.bias is not None)
        found.to(linear.weight)
        with torch.no_grad():
            dense = F.pad(linear.weight, (0, -linear.in_features % n_blocks, 0, -linear.out_features % n_blocks))
            factors = project_monarch(dense, (n_blocks, n_blocks), inner=found.first.shape[1])
            for own, projected in zip((found.first, found.second), factors, strict=True):
                own.copy_(projected)
            if found.bias is not None:
                found.bias.copy_(linear.bias)
        return found

    def forward(self, x: Inexact[Tensor, "*b d"]) -> Inexact[Tensor, "*b c"]:
        """min(c, d) (c + d) / n_blocks operations at every position."""
        if x.shape[-1] != self.in_features:
            raise InputError(f"MonarchLinear: x has {x.shape[-1]} features, not in_features={self.in_features}")
        columns = self.first.shape[0] * self.first.shape[2]
        y = monarch(F.pad(x, (0, columns - self.in_features)), [self.first, self.second])[..., : self.out_features]
        return y if self.bias is None else (y + self.bias).to(y.dtype)
