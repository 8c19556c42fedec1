"""Rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864).

Each pair of features (x_i, x_i') is turned by the angle position * base^(-i / pairs), so that the product of a query
and a key depends on their distance alone.  The pairs are (i, i + pairs), as in GPT-NeoX and its successors, or
neighbours (2i, 2i + 1), as in GPT-J and in the paper.

Axes: b batch, h heads, l length, e head width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longreach.errors import InputError


def rotary(
    x: Float[Tensor, "b h l e"],
    position: Int[Tensor, " l"] | Int[Tensor, "b l"],
    *,
    base: float = 10_000.0,
    dims: int | None = None,
    interleaved: bool = False,
) -> Float[Tensor, "b h l e"]:
    """Turn the first `dims` features (default: all) of every head of `x` by their angles at `position`.

    Angles are float64 until their cosine is taken, because float32 knows the angle at position 10^6 to only 0.06;
    the turn itself is float32 or wider, and the result has the dtype of `x`.
    Raises InputError unless `dims` is even and at most e.
    """
    dims = x.shape[-1] if dims is None else dims
    if dims % 2 or not 0 < dims <= x.shape[-1]:
        raise InputError(f"rotary positions turn pairs: dims={dims} must be even, above 0 and at most {x.shape[-1]}")
    wide = torch.promote_types(x.dtype, torch.float32)
    frequency = base ** (-torch.arange(0, dims, 2, device=x.device, dtype=torch.float64) / dims)
    angle = (position[..., None] * frequency).unsqueeze(-3)  # (1, l, pairs) or (b, 1, l, pairs)
    cos, sin = angle.cos().to(wide), angle.sin().to(wide)
    turning, passing = x[..., :dims].to(wide), x[..., dims:]
    if interleaved:
        first, second = turning[..., 0::2], turning[..., 1::2]
    else:
        first, second = turning.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    joined = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    return torch.cat([joined.to(x.dtype), passing], dim=-1)
