"""Attention without softmax, whose weights are products of features, so that sums take the place of the past.

    y_t = sum_s (q_t . k_s) v_s  +  q_t S_initial          s <= t if causal, else all s        S (n, f)
    S_final = S_initial + sum_s k_s v_s^T

(Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236; Choromanski et al. 2020, https://arxiv.org/abs/2009.14794.)
Weights that add up to one need the sum of them too: give v a column of ones, and divide by that column of y.  A
position whose k is zero is not there, which is how padding is left out.

The causal sum in linear time: chunks of positions attend among themselves, and to the sums over the chunks before.

Axes: b batch, h heads, l length, n features of query and key, f width of the value, m chunks of c positions.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.memory_step import memory_step

CHUNK = 128
"""Positions that attend among themselves; the fastest on a CPU for 64 and for 256 features, values 64 wide."""


@op
def linear_attention(
    query: Float[Tensor, "b h l n"],
    key: Float[Tensor, "b h l n"],
    value: Float[Tensor, "b h l f"],
    initial: Float[Tensor, "b h n f"] | None = None,
    *,
    causal: bool = True,
) -> tuple[Float[Tensor, "b h l f"], Float[Tensor, "b h n f"]]:
    """Attend with weights q . k, and return the sums that a later chunk starts from.

    Everything is computed and returned in the common dtype of the arguments, or in float32 where that is narrower.
    The reference, which this is, takes O(l^2) time.
    """
    query, key, value, initial = _common(query, key, value, initial)
    with torch.autocast(query.device.type, enabled=False):
        weights = query @ key.mT
        y = (weights.tril() if causal else weights) @ value + query @ initial
        return y, initial + key.mT @ value


@linear_attention.backend("chunked")
def _chunked(
    query: Tensor, key: Tensor, value: Tensor, initial: Tensor | None = None, *, causal: bool = True
) -> tuple[Tensor, Tensor]:
    """O(l (c + n) (n + f)) time and O(l (c + n f / c)) memory; without `causal`, O(l n f) time."""
    query, key, value, initial = _common(query, key, value, initial)
    with torch.autocast(query.device.type, enabled=False):
        if not causal:
            final = initial + key.mT @ value
            return query @ final, final
        length = query.shape[2]
        if length == 1:
            y, final = memory_step(query[:, :, 0], key[:, :, 0], value[:, :, 0], initial)
            return y[:, :, None], final
        if length <= CHUNK:
            return (query @ key.mT).tril() @ value + query @ initial, initial + key.mT @ value
        missing = -length % CHUNK
        query, key, value = (F.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, CHUNK)) for x in (query, key, value))
        sums = torch.cat([initial[:, :, None], key.mT @ value], dim=2).cumsum(2)  # (b, h, m + 1, n, f)
        y = (query @ key.mT).tril() @ value + query @ sums[:, :, :-1]
        return y.flatten(2, 3)[:, :, :length], sums[:, :, -1].clone()  # not a view, which would keep all sums


def _common(query: Tensor, key: Tensor, value: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The arguments in one dtype, the sums filled in, after a look at the shapes."""
    (b, h, length, n), f = query.shape, value.shape[-1]
    if initial is None:
        initial = query.new_zeros(b, h, n, f)
    if key.shape != query.shape or value.shape[:3] != (b, h, length) or initial.shape != (b, h, n, f):
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value, initial))
        raise InputError(
            f"linear_attention: query, key, value, initial must be (b, h, l, n) twice, (b, h, l, f) and (b, h, n, f), "
            f"but they are {shapes}"
        )
    dtype = torch.float32
    for x in (query, key, value, initial):
        dtype = torch.promote_types(dtype, x.dtype)
    return query.to(dtype), key.to(dtype), value.to(dtype), initial.to(dtype)
