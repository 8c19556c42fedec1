"""What stood one position before: the memory of one step that RWKV mixes into every input.

    previous_t = x_{t-1},     previous_0 = last         over the real positions; padding is not there

RWKV: https://arxiv.org/abs/2305.13048, section 3.1.

Axes: b batch, l length, d channels.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longreach.errors import InputError


def token_shift(
    x: Float[Tensor, "b l d"], last: Float[Tensor, "b d"], mask: Bool[Tensor, "b l"] | None = None
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d"]]:
    """The real position before each one (`last` before the first of a row), and the last real one of all, O(b l d).

    The first has the dtype of `x`, the second that of `last`.  What `x` holds where `mask` is False does not matter,
    and the result there is undefined.
    """
    if x.shape[1] == 0 or last.shape != (x.shape[0], x.shape[2]):
        raise InputError(
            f"token_shift: x {tuple(x.shape)} must be (batch, length >= 1, channels) and last {tuple(last.shape)} "
            "must be (batch, channels)"
        )
    if mask is None and x.shape[1] == 1:
        return last[:, None].to(x.dtype), x[:, 0].to(last.dtype, copy=True)
    joined = torch.cat([last[:, None].to(x.dtype), x], dim=1)
    if mask is None:
        return joined[:, :-1], x[:, -1].to(last.dtype, copy=True)  # not a view, which would keep all positions
    place = torch.arange(1, x.shape[1] + 1, device=x.device)  # in `joined`, where 0 is `last`
    latest = torch.where(mask, place, 0).cummax(dim=1).values  # (b, l), the last real place up to each position
    before = torch.cat([torch.zeros_like(latest[:, :1]), latest[:, :-1]], dim=1)
    previous = joined.gather(1, before[..., None].expand_as(x))
    after = torch.where(mask.any(1, keepdim=True), _at(x, latest[:, -1] - 1).to(last.dtype), last)
    return previous, after


def _at(x: Tensor, position: Tensor) -> Tensor:
    """Row by row, `x` (b, l, d) at a position (b,)."""
    return x.gather(1, position.clamp(min=0)[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]
