"""Linear attention that also rewrites its memory: the recurrence of RWKV-7.

    S_t = diag(e^{g_t}) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T              g_t <= 0
    y_t = q_t^T S_t

What a reads from the memory is written back under b; with a = -kappa and b = rate kappa this moves what is stored under
kappa towards v, the delta rule (RWKV-7, Peng et al. 2025, https://arxiv.org/abs/2503.14456).  Let z_t = a_t^T S_{t-1}:
then (b, z) are a second pair of keys and values, and within a chunk

    z = (1 - A_ab)^{-1} (A_ak v + a~ S)        A the decayed scores, a~ = a with the decay since the chunk began

is one triangular system, so a chunk maps the state that enters it to  P S + Q  (the WY form of DeltaNet, Yang et al.
2024, https://arxiv.org/abs/2406.06484).

Axes: b batch, h heads, l length, k key channels, v value channels, m chunks, c positions of a chunk.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.decayed_scores import decay_after, decay_before, decayed_scores
from longreach.ops.gated_linear_attention import into_chunks
from longreach.ops.memory_step import memory_step


@op
def delta_rule(
    query: Float[Tensor, "b h l k"],
    key: Float[Tensor, "b h l k"],
    value: Float[Tensor, "b h l v"],
    log_decay: Float[Tensor, "b h l k"],
    read: Float[Tensor, "b h l k"],
    write: Float[Tensor, "b h l k"],
    state: Float[Tensor, "b h k v"],
) -> tuple[Float[Tensor, "b h l v"], Float[Tensor, "b h k v"]]:
    """All y_t after `state` S_{-1}, and the state after them; g is `log_decay`, a is `read`, b is `write`.

    Both results have the dtype of the state.  A position with key, log_decay, read and write 0 leaves the state as it
    is.  O(b h l k v) operations, in l steps one after the other.
    """
    inputs = _common(query, key, value, log_decay, read, write, state)
    outputs = []
    for q, k, v, g, a, b in zip(*(x.unbind(2) for x in inputs), strict=True):
        y, state = memory_step(q, k, v, state, g.exp(), a, b)
        outputs.append(y)
    return torch.stack(outputs, dim=2), state


def _chunked_yields(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, read: Tensor, write: Tensor, state: Tensor
) -> str | None:
    return "one position is one step" if query.shape[2] == 1 else None


@delta_rule.backend("chunked", yields=_chunked_yields)
def _chunked(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, read: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Matrix products and m short steps: O(b h l (c (k + v) + k^2 + k v)) operations, O(b h m k (k + v)) memory."""
    inputs = _common(query, key, value, log_decay, read, write, state)
    length = query.shape[2]
    with torch.autocast(query.device.type, enabled=False):
        q, k, v, g, a, b = (into_chunks(x) for x in inputs)  # (b, h, m, c, k or v)
        queries, keys = torch.stack([a, q * g.exp()]), torch.stack([b, k])  # q reads what its own position wrote
        (ab, ak), (qb, qk) = (row.unbind(0) for row in decayed_scores(queries[:, None], keys, g).unbind(0))
        a, q_past = (queries * decay_before(g).exp()).unbind(0)
        b_left, k_left = (keys * decay_after(g).exp()).unbind(0)  # what is left of each at the end of its chunk
        system = torch.eye(ab.shape[-1], dtype=ab.dtype, device=ab.device) - ab
        solved = torch.linalg.solve_triangular(system, torch.cat([a, ak @ v], dim=-1), upper=False, unitriangular=True)
        z_of_state, z_alone = solved.split([a.shape[-1], v.shape[-1]], dim=-1)  # z = z_of_state S + z_alone
        P = torch.diag_embed(g.sum(-2).exp()) + b_left.mT @ z_of_state
        Q = b_left.mT @ z_alone + k_left.mT @ v
        entering = []
        for P_m, Q_m in zip(P.unbind(2), Q.unbind(2), strict=True):
            entering.append(state)
            state = P_m @ state + Q_m
        S = torch.stack(entering, dim=2)
        z = z_of_state @ S + z_alone
        qb = qb + torch.diag_embed((q * keys[0]).sum(-1))
        qk = qk + torch.diag_embed((q * k).sum(-1))
        y = q_past @ S + qb @ z + qk @ v
    return y.flatten(2, 3)[:, :, :length], state


def _common(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, read: Tensor, write: Tensor, state: Tensor
) -> tuple[Tensor, ...]:
    """The arguments in the dtype of the state, after a look at their shapes."""
    like_query = {tuple(x.shape) for x in (query, key, log_decay, read, write)}
    b, h, length, k = query.shape
    fits = value.shape[:3] == (b, h, length) and state.shape == (b, h, k, value.shape[-1])
    if len(like_query) > 1 or not fits or length == 0:
        raise InputError(
            f"delta_rule: query, key, log_decay, read and write must have one shape (b, h, l >= 1, k), with a value "
            f"(b, h, l, v) and a state (b, h, k, v); they are {[tuple(x.shape) for x in (query, key, log_decay)]} and "
            f"{[tuple(x.shape) for x in (read, write, value, state)]}"
        )
    return tuple(x.to(state.dtype) for x in (query, key, value, log_decay, read, write))
