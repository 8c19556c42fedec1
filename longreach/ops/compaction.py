"""Sequences without the padding before and between their real positions, for maps that count positions.

    packed = compact(x, mask)                every row's real positions first, in their order
    y      = restore(f(packed.x, packed.mask), packed)

Axes: b batch, l length, d width.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from longreach.ops.modal import padding_first


class Compact(NamedTuple):
    """A batch with all of its padding at the end, and zero there."""

    x: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]
    order: Int[Tensor, "b l"]
    """Where each position came from."""


def compact(x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"]) -> Compact:
    """Move the positions where `mask` is True to the front; O(b l d)."""
    order = padding_first(~mask)
    mask = mask.gather(1, order)
    return Compact(x.gather(1, order[..., None].expand_as(x)).masked_fill(~mask[..., None], 0.0), mask, order)


def restore(y: Float[Tensor, "b l d"], packed: Compact) -> Float[Tensor, "b l d"]:
    """Move what was computed from a compact batch back to where it belongs."""
    return y.gather(1, packed.order.argsort(dim=1)[..., None].expand_as(y))
