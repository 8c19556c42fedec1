"""One position of a memory that is a matrix in every head: linear attention, RWKV-5, 6 and 7.

    z  = read^T S                                                         what the delta rule writes back
    S' = diag(decay) S + write z^T + key value^T
    y  = query^T S'        or with a bonus     query^T (S + diag(bonus) key value^T)

For whole sequences: longreach.ops.linear_attention, gated_linear_attention and delta_rule.

Axes: b batch, h heads, k key channels, v value channels.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from longreach.ops.backend import op
from longreach.ops.native import refusal
from longreach.ops.steps_native import native_memory_step, step_yields

DTYPES = (torch.float32, torch.float64)


@op
def memory_step(
    query: Float[Tensor, "b h k"],
    key: Float[Tensor, "b h k"],
    value: Float[Tensor, "b h v"],
    state: Float[Tensor, "b h k v"],
    decay: Float[Tensor, "b h k"] | None = None,
    read: Float[Tensor, "b h k"] | None = None,
    write: Float[Tensor, "b h k"] | None = None,
    bonus: Float[Tensor, "h k"] | None = None,
) -> tuple[Float[Tensor, "b h v"], Float[Tensor, "b h k v"]]:
    """The output and the memory after it, in the dtype that all arguments have; `read` and `write` come together.

    O(b h k v), where every number of the memory is read and written once, and once more for `read`.
    """
    written = key[..., None] * value[..., None, :]
    after = written + (state if decay is None else decay[..., None] * state)
    if read is not None and write is not None:
        after = after + write[..., None] * (read[..., None, :] @ state)
    seen = after if bonus is None else state + bonus[..., None] * written
    return (query[..., None, :] @ seen).squeeze(-2), after


def _native_refuses(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor,
    decay: Tensor | None = None,
    read: Tensor | None = None,
    write: Tensor | None = None,
    bonus: Tensor | None = None,
) -> str | None:
    return refusal(state.device, state.dtype, DTYPES)


@memory_step.backend("native", refuses=_native_refuses, yields=step_yields)
def _native(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor,
    decay: Tensor | None = None,
    read: Tensor | None = None,
    write: Tensor | None = None,
    bonus: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """In compiled code, without temporary tensors."""
    return native_memory_step(query, key, value, state, decay, read, write, bonus)
