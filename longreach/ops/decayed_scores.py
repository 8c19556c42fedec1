"""Products of queries with earlier keys that decay on the way: what the chunks of gated linear recurrences share.

    scores_ti = sum_n q_tn k_in exp(g_{i+1,n} + ... + g_{t-1,n})        i < t,  g <= 0

The textbook form divides one running product of decays by another, which overflows for strong decay.  Here the square
is cut in two again and again: where the queries lie in the later half of a block and the keys in the earlier one, both
decays are measured towards the middle, so that both factors are at most 1 and no digits cancel, whatever g is.

Gated linear attention: Yang et al. 2023, https://arxiv.org/abs/2312.06635 (whose secondary chunks serve the same end).

Axes: ... any leading axes (they broadcast), c positions of a chunk, n channels.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from longreach.errors import InputError


def decay_before(log_decay: Float[Tensor, "*b c n"]) -> Float[Tensor, "*b c n"]:
    """The log of the decay of all earlier positions together, g_0 + ... + g_{t-1}."""
    return pad(log_decay[..., :-1, :].cumsum(-2), (0, 0, 1, 0))


def decay_after(log_decay: Float[Tensor, "*b c n"]) -> Float[Tensor, "*b c n"]:
    """The log of the decay of all later positions together, g_{t+1} + ... + g_{c-1}."""
    return decay_before(log_decay.flip(-2)).flip(-2)


def decayed_scores(
    query: Float[Tensor, "*q c n"], key: Float[Tensor, "*k c n"], log_decay: Float[Tensor, "*g c n"]
) -> Float[Tensor, "*b c c"]:
    """The strictly lower triangular scores, O(c n (c + log c)); c must be a power of two."""
    size = query.shape[-2]
    if size & (size - 1) or not query.shape[-2:] == key.shape[-2:] == log_decay.shape[-2:]:
        raise InputError(
            f"decayed_scores: query {tuple(query.shape)}, key {tuple(key.shape)} and log_decay "
            f"{tuple(log_decay.shape)} must end in the same (positions, channels), positions a power of two"
        )
    leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], log_decay.shape[:-2])
    scores, half = query.new_zeros(*leading, size, 1, 1), 1
    while half < size:
        _, later_query = _halves(query, half)
        earlier_key, _ = _halves(key, half)
        earlier_decay, later_decay = _halves(log_decay, half)
        to_middle = earlier_key * decay_after(earlier_decay).exp()
        from_middle = later_query * decay_before(later_decay).exp()
        across = (from_middle @ to_middle.mT).expand(*leading, -1, -1, -1)
        earlier, later = scores.unflatten(-3, (-1, 2)).unbind(-3)
        upper = torch.cat([earlier, torch.zeros_like(across)], dim=-1)
        scores = torch.cat([upper, torch.cat([across, later], dim=-1)], dim=-2)
        half *= 2
    return scores[..., 0, :, :]


def _halves(x: Tensor, half: int) -> tuple[Tensor, ...]:
    """The earlier and the later halves of all blocks of 2 `half` positions, each (..., blocks, half, n)."""
    return x.unflatten(-2, (-1, 2, half)).unbind(-3)
