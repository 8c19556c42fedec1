"""SGConv, convolution with kernels of many scales (Li, Cai, Zhang, Chen & Dey 2022, https://arxiv.org/abs/2210.09298).

What makes a long kernel learnable, after this paper: few parameters, and taps that decay with their distance.  A kernel
is put together of s pieces with m trained numbers each.  Piece i is stretched by 2^max(0, i - 1), so that each is as
long as all those before it, and weighs less than they do:

    K = cat_i  stretch(w_i, 2^max(0, i-1)) multiplier^(s-1-i)  /  norm            taps: m 2^(s-1)
    y = K * x + skip x

With combine="sum" the pieces all start at the present, piece i stretched by 2^i, and are added.  `norm` is the length
(l2) of the kernel that the mixer starts with, for each channel; it is not trained.

The mixer is the bare convolution: activation and linear map of the published layer belong to the channel mixer.

Axes: b batch, l length, d channels, r directions (past first), s scales, m numbers of a piece, k taps.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.base import OptimHint
from longreach.mixers.convolution import Convolution


@dataclass(frozen=True)
class SGConvOptions:
    """The less common choices; in parentheses the names in the published code.

    Attributes:
        combine: put the pieces one after the other, or add them up (cat, sum in `mode`).
        init: `normal` numbers, or a `cosine` with a whole number of periods, another in every channel (randn, cos).
        interpolation: how a piece is stretched (nearest in `mode`).
        n_scales: number of pieces (n_scales); None for as many as `kernel_length` needs.
        first_scale: stretch everything by 2^first_scale more (init_scale).
        decay: `scale` weighs the pieces as in the equation; `power` multiplies tap j with (1 + j)^-decay instead, with
            a trained exponent for each channel; `fixed-power` does not train it (learnable, fixed in `mode`).
        decay_min: multiplier, or least initial exponent, of the first channel (decay_min).
        decay_max: multiplier, or greatest initial exponent, of the last channel (decay_max).
        lr: learning rate of the pieces and exponents (lr); None for that of the run.
    """

    combine: Literal["cat", "sum"] = "cat"
    init: Literal["normal", "cosine"] = "normal"
    interpolation: Literal["linear", "nearest"] = "linear"
    n_scales: int | None = None
    first_scale: int = 0
    decay: Literal["scale", "power", "fixed-power"] = "scale"
    decay_min: float = 2.0
    decay_max: float = 2.0
    lr: float | None = 1e-3


class SGConv(Convolution):
    """Structured global convolution: O(d l log l) on a sequence, O(m log(k / m)) numbers for a kernel of k taps.

    Args:
        d_model: number of channels.
        kernel_length: the kernel has at least so many taps (l_max), as many as whole pieces make.
        piece_length: trained numbers of a piece (kernel_dim).
        causal: whether a position sees only itself and what came before it; otherwise what follows too.
        options: the less common choices.
    """

    multiplier: Tensor  # (d,), if the decay is by scale
    decay: Tensor  # (d,), if it is not
    norm: Tensor  # (r, d)

    def __init__(
        self,
        d_model: int,
        *,
        kernel_length: int = 1024,
        piece_length: int = 64,
        causal: bool = True,
        options: SGConvOptions = SGConvOptions(),
    ) -> None:
        super().__init__(d_model, causal=causal)
        if kernel_length < 1 or piece_length < 1 or options.first_scale < 0:
            raise InputError(
                f"{kernel_length=}, {piece_length=} and first_scale={options.first_scale} are positive numbers"
            )
        needed = max(1, 1 + math.ceil(math.log2(kernel_length / piece_length)) - options.first_scale)
        n_scales = needed if options.n_scales is None else options.n_scales
        if n_scales < 1:
            raise InputError(f"n_scales={n_scales}: a kernel has at least one piece")
        self.options = options
        shape = (n_scales, 1 if causal else 2, d_model, piece_length)
        pieces = torch.randn(shape) if options.init == "normal" else _cosines(d_model, piece_length).expand(shape)
        self.pieces = nn.Parameter(pieces.clone())
        self.skip = nn.Parameter(torch.randn(d_model))
        self.optim_hints = {"pieces": OptimHint(lr=options.lr)}
        if options.decay == "scale":
            self.register_buffer("multiplier", torch.linspace(options.decay_min, options.decay_max, d_model))
        elif options.decay == "power":
            self.decay = nn.Parameter(self._exponents())
            self.optim_hints |= {"decay": OptimHint(lr=options.lr)}
        else:
            self.register_buffer("decay", self._exponents())
        self.register_buffer("norm", torch.ones(shape[1:3]))
        with torch.no_grad():
            self.norm.copy_(torch.linalg.vector_norm(self.kernels(self.taps), dim=-1))

    def _exponents(self) -> Float[Tensor, " d"]:
        return torch.empty(self.d_model).uniform_(self.options.decay_min, self.options.decay_max)

    @property
    def taps(self) -> int:
        """How many taps each kernel has."""
        n_scales, *_, piece_length = self.pieces.shape
        return piece_length << (n_scales - 1 + self.options.first_scale)

    def kernels(self, count: int) -> Float[Tensor, "r d {count}"]:
        """The first `count` taps, O(d count)."""
        options, last = self.options, self.pieces.shape[0] - 1
        dtype = torch.promote_types(self.pieces.dtype, torch.float32)
        kernel = torch.zeros(*self.pieces.shape[1:3], 0 if options.combine == "cat" else count, dtype=dtype)
        kernel = kernel.to(self.pieces.device)
        for i, piece in enumerate(self.pieces.to(dtype)):
            if options.decay == "scale":
                piece = piece * self.multiplier[:, None] ** (last - i)
            doublings = options.first_scale + (i if options.combine == "sum" else max(0, i - 1))
            start = kernel.shape[-1] if options.combine == "cat" else 0
            if start == count:
                break
            stretched = stretch(piece, 1 << doublings, count - start, options.interpolation)
            if options.combine == "cat":
                kernel = torch.cat([kernel, stretched], dim=-1)
            else:
                kernel = kernel + nn.functional.pad(stretched, (0, count - stretched.shape[-1]))
        if options.decay != "scale":
            time = torch.arange(1, count + 1, dtype=dtype, device=kernel.device)
            kernel = kernel * time ** -self.decay[:, None]
        return kernel / self.norm[..., None]


def stretch(
    piece: Float[Tensor, "r d m"], factor: int, count: int, interpolation: Literal["linear", "nearest"]
) -> Float[Tensor, "r d _"]:
    """`factor` taps, a power of two, for each number: the first `count` of these m * factor.

    Each number stands in the middle of its taps; linear interpolation keeps the value beyond the first and last number.
    """
    piece = piece[..., : -(-count // factor) + 1]
    total = min(count, piece.shape[-1] * factor)
    if interpolation == "nearest" or factor == 1:
        return piece.repeat_interleave(factor, dim=-1)[..., :total]
    ends = torch.cat([piece[..., :1], piece, piece[..., -1:]], dim=-1)
    part = (torch.arange(factor, dtype=piece.dtype, device=piece.device) + 0.5) / factor
    taps = torch.lerp(ends[..., :-1, None], ends[..., 1:, None], part).flatten(-2)
    return taps[..., factor // 2 : factor // 2 + total]


def _cosines(d_model: int, piece_length: int) -> Float[Tensor, "d m"]:
    """cos with 0 .. d - 1 periods, in random order of the channels."""
    angle = torch.linspace(0, 2 * math.pi, piece_length, dtype=torch.float64)
    periods = torch.randperm(d_model)[:, None]
    return (periods * angle).cos().to(torch.get_default_dtype())
