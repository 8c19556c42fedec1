"""Linear attention whose memory decays channel by channel: the recurrence of RWKV-5 and RWKV-6.

    y_t = q_t^T (S_{t-1} + diag(bonus) k_t v_t^T)
    S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T                    g_t <= 0, one for each key channel

(Eagle and Finch, Peng et al. 2024, https://arxiv.org/abs/2404.05892; the chunked form: Yang et al. 2023,
https://arxiv.org/abs/2312.06635.)  Within a chunk the outputs are attention with decayed scores; from chunk to chunk
the state is a linear scan.

Axes: b batch, h heads, l length, k key channels, v value channels, m chunks, c positions of a chunk.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.decayed_scores import decay_after, decay_before, decayed_scores
from longreach.ops.linear_scan import linear_scan
from longreach.ops.memory_step import memory_step

CHUNK = 64
"""Positions of a chunk, a power of two."""


@op
def gated_linear_attention(
    query: Float[Tensor, "b h l k"],
    key: Float[Tensor, "b h l k"],
    value: Float[Tensor, "b h l v"],
    log_decay: Float[Tensor, "b h l k"],
    bonus: Float[Tensor, "h k"],
    state: Float[Tensor, "b h k v"],
) -> tuple[Float[Tensor, "b h l v"], Float[Tensor, "b h k v"]]:
    """All y_t after `state` S_{-1}, and the state after them; g is `log_decay`.

    Both results have the dtype of the state.  A position with key and log_decay 0 leaves the state as it is.
    O(b h l k v) operations, in l steps one after the other.
    """
    query, key, value, log_decay, bonus = _common(query, key, value, log_decay, bonus, state)
    outputs = []
    for q, k, v, g in zip(*(x.unbind(2) for x in (query, key, value, log_decay)), strict=True):
        y, state = memory_step(q, k, v, state, g.exp(), None, None, bonus)
        outputs.append(y)
    return torch.stack(outputs, dim=2), state


def _chunked_yields(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor
) -> str | None:
    return "one position is one step" if query.shape[2] == 1 else None


@gated_linear_attention.backend("chunked", yields=_chunked_yields)
def _chunked(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Matrix products: O(b h l (c (k + v) + k v)) operations, O(sqrt(m)) steps and O(b h m k v) memory for states."""
    query, key, value, log_decay, bonus = _common(query, key, value, log_decay, bonus, state)
    length = query.shape[2]
    with torch.autocast(query.device.type, enabled=False):
        q, k, v, g = (into_chunks(x) for x in (query, key, value, log_decay))  # (b, h, m, c, k or v)
        present = (q * bonus[:, None, None] * k).sum(-1)
        scores = decayed_scores(q, k, g) + torch.diag_embed(present)
        written = (k * decay_after(g).exp()).mT @ v  # (b, h, m, k, v)
        kept = g.sum(-2).exp()[..., None].expand_as(written)
        kept, written = (x.transpose(1, 2).flatten(2) for x in (kept, written))  # (b, m, h k v)
        states = linear_scan(kept, written, state.flatten(1)).unflatten(2, state.shape[1:]).transpose(1, 2)
        entering = torch.cat([state[:, :, None], states[:, :, :-1]], dim=2)
        y = scores @ v + (q * decay_before(g).exp()) @ entering
    return y.flatten(2, 3)[:, :, :length], states[:, :, -1].clone()  # not a view, which would keep all states


def into_chunks(x: Float[Tensor, "b h l n"]) -> Float[Tensor, "b h m c n"]:
    """Chunks of CHUNK positions, or one of the least power of two that holds all; zeros fill the last."""
    length = x.shape[2]
    size = min(CHUNK, 1 << (length - 1).bit_length())
    return pad(x, (0, 0, 0, -length % size)).unflatten(2, (-1, size))


def _common(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor
) -> tuple[Tensor, ...]:
    """The arguments in the dtype of the state, after a look at their shapes."""
    b, h, length, k = query.shape
    v = value.shape[-1]
    wanted = [(b, h, length, k), (b, h, length, v), (b, h, length, k), (h, k), (b, h, k, v)]
    given = [tuple(x.shape) for x in (key, value, log_decay, bonus, state)]
    if given != wanted or length == 0:
        raise InputError(
            f"gated_linear_attention: for a query {tuple(query.shape)} of at least one position, key, value, "
            f"log_decay, bonus and state must be {wanted}; they are {given}"
        )
    return tuple(x.to(state.dtype) for x in (query, key, value, log_decay, bonus))
