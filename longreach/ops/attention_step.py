"""Attention of one new position to a key-value cache by a compiled kernel (csrc/attention_step.cpp).

Where torch joins the scores of all blocks, masks them and splits the weights again, a dozen calls, this is one, and
nothing lies between: longreach.ops.key_value_cache.attend_to_parts, which says what is computed, asks for it while
tokens are generated.

Axes: b batch, g key-value heads, h query heads (a multiple of g), m keys of a part, e key width, f value width.
"""

import struct
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longreach.ops.native import addresses, dtype_name, integers, kernel, refusal
from longreach.ops.steps_native import called_directly, dense, threads_for

DTYPES = (torch.float32, torch.float64)

Part = tuple[Float[Tensor, "b g _ e"], Float[Tensor, "b g _ f"], Int[Tensor, "b _"]]
"""Keys, values and positions, which are negative at padding."""


def attention_step_refuses(query: Float[Tensor, "b h l e"], parts: Sequence[Part]) -> str | None:
    """Why the kernel cannot run, or None."""
    dtype = query.dtype
    if query.shape[2] != 1 or not called_directly():
        return "takes one position, where no gradient is recorded and nothing compiled"
    if any(key.dtype != dtype or value.dtype != dtype for key, value, _ in parts):
        return "needs tensors of one dtype"
    return refusal(query.device, dtype, DTYPES)


def attention_step(
    query: Float[Tensor, "b h 1 e"],
    position: Int[Tensor, "b 1"],
    parts: Sequence[Part],
    window: int | None,
    alibi_slopes: Float[Tensor, " h"] | None,
) -> Float[Tensor, "b h 1 f"]:
    """What `attend_to_parts` defines, O(h m (e + f)), where `attention_step_refuses` has no objection."""
    (b, h, _, e), (g, f) = query.shape, (parts[0][0].shape[1], parts[0][1].shape[3])
    query, position = dense(query), dense(position)
    slopes = None if alibi_slopes is None else dense(alibi_slopes.to(query.dtype))
    tensors = [query, position, slopes]
    sizes, total = [b, h, g, e, f, 2**62 if window is None else window, len(parts)], 0
    for key, value, positions in parts:
        key, value, positions = (_in_rows(x) for x in (key, value, positions))
        tensors += key, value, positions
        sizes += key.shape[2], *key.stride()[:3], *value.stride()[:3], positions.stride(0)
        total += key.shape[2]
    y = query.new_empty(b, h, 1, f)
    run = kernel(f"attention_step_{dtype_name(query.dtype)}", 4, 0)
    run(addresses(*tensors), integers(*sizes), struct.pack("d", e**-0.5), y.data_ptr(), threads_for(b * h * total * e))
    return y


def _in_rows(x: Tensor) -> Tensor:
    """With the last axis side by side in memory."""
    return x if x.stride(-1) == 1 and not x.is_neg() else dense(x)
