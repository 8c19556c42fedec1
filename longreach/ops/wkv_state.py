"""What WKV (longreach.ops.wkv) carries from position to position.

Axes: b batch, c channels.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

EMPTY = -1e38
"""The exponent of sums that have no terms yet."""


class WKVState(NamedTuple):
    """Both sums over the past, divided by e^exponent."""

    numerator: Float[Tensor, "b c"]
    denominator: Float[Tensor, "b c"]
    exponent: Float[Tensor, "b c"]


def init_wkv(batch_size: int, like: Float[Tensor, " c"]) -> WKVState:
    """The state before the first position, in the dtype (at least float32) and on the device of `like`."""
    zeros = like.new_zeros(batch_size, len(like), dtype=torch.promote_types(like.dtype, torch.float32))
    return WKVState(zeros, zeros, torch.full_like(zeros, EMPTY))
