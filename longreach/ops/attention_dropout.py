"""Which attention weights are dropped: a hash of a seed and of the weight's place, and therefore the same whatever the
tiles are, in the forward pass and when the backward pass computes the weights again.

    kept_bhij = mix(mix(row_bhi) xor mix(seed) xor mix(-1 - j)) >= threshold        row_bhi counts all queries

`mix` is the finaliser of MurmurHash3 (Appleby 2011): a bijection of 32-bit integers, every bit of which depends on
every bit of its argument.

Axes: b batch, h heads, l queries, m keys.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def kept_weights(
    seed: Int[Tensor, ""], dropout: float, shape: tuple[int, ...], queries: slice, keys: slice
) -> Bool[Tensor, "b h l m"]:
    """True with probability 1 - `dropout`, for the weights [:, :, queries, keys] of a whole of size `shape`."""
    b, h, l, m = shape
    row = torch.arange(b * h * l, device=seed.device).view(b, h, l)[:, :, queries, None]
    column = torch.arange(m, device=seed.device)[keys]
    row, column, seed = (scramble(x.to(torch.int32)) for x in (row, -1 - column, seed))
    return scramble((row ^ seed) ^ column) >= threshold(dropout)


def threshold(dropout: float) -> int:
    """From which hash on a weight is kept."""
    return round((dropout - 0.5) * 2**32)


def scramble(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """The same 32-bit integers, thoroughly disordered; products wrap around, and shifts must not copy the sign."""
    x = (x ^ (x >> 16 & 0xFFFF)) * -0x7A143595
    x = (x ^ (x >> 13 & 0x7FFFF)) * -0x3D4D51CB
    return x ^ (x >> 16 & 0xFFFF)
